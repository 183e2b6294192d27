"""What works with which family of models: tiny ones of all that the installed transformers can make, through `ft`.

    python benchmarks/families.py --processes 2 --out benchmarks/families.json

Each family is a model of two layers with random weights, in float32 on the CPU, in a process of its own. It must make
a forward pass in transformers itself; then `ft` trains LoRA on all of its linear layers, forecasts that run, stops it
after two of four steps and goes on (to the same bytes), trains on packed rows (or refuses a model that cannot keep
documents apart), merges with its proof of parity, and answers. What fails is kept with the line that `ft` said.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import json
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from support.architectures import CONFIGS

Json = dict[str, Any]
TINY: Json = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "bos_token_id": None,
    "eos_token_id": 257,
    "pad_token_id": 258,
}
"""What configurations are made of; each takes the keys that it knows."""
LATENT: Json = {"head_dim": 8, "qk_head_dim": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
                "kv_lora_rank": 16, "q_lora_rank": 16, "num_key_value_heads": 4, "index_head_dim": 16}  # fmt: skip
"""Heads of attention whose keys and values are made of fewer numbers."""
MAMBA: Json = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_d_ssm": 128,
               "mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 16, "n_groups": 1,
               "mamba_chunk_size": 16, "chunk_size": 16}  # fmt: skip
"""Narrow ones: transformers' own operations take minutes on the CPU for those of its defaults."""
DECODERS = ("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert",
            "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta",
            "xlm-roberta-xl", "xmod")  # fmt: skip
"""Those that are encoders, which see the whole row, unless their configuration says otherwise; these are refused."""
MORE: dict[str, Json] = {
    **{name: {"is_decoder": True} for name in DECODERS},
    "xlm": {"causal": True},
    **dict.fromkeys(("bamba", "falcon_h1", "granitemoehybrid", "nemotron_h"), MAMBA),
    **dict.fromkeys(("axk2", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "minicpm3"), LATENT),
    **{name: {"rotary_dim": 8} for name in ("codegen", "gptj")},
    **{name: {"bos_token_id": 1} for name in ("cwm", "modernbert-decoder")},
    "dots1": {"n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8, "state_size": 16, "n_groups": 1, "chunk_size": 16},
    "axk1": {**LATENT, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "plbart": {"encoder_attention_heads": 4, "decoder_attention_heads": 4},
}
"""What families need besides, or in place of these."""
LARGEST = 30_000_000
"""Parameters above which a configuration did not become a tiny one."""
STOP = """import os

from fitune import hookimpl


@hookimpl
def ft_step_done(run, step):
    if step.step == int(os.environ.get("STOP_AFTER", "0")):
        run.stop.ask("it is to go on")
"""
VERBS = ("run", "plan", "resume", "packed", "merge", "generate")


def ft(*arguments: object) -> str:
    """What a command prints. Raises `RuntimeError` with its error where it ends with one."""
    from fitune.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main([*map(str, arguments), "--no-third-party"])
    except SystemExit as ended:
        if ended.code not in (0, None):
            said = [line for line in err.getvalue().splitlines() if line.startswith("error: ")]
            raise RuntimeError(f"exit {ended.code}: {' '.join(said)[:400]}") from None
    return out.getvalue()


def write_model(name: str, directory: Path) -> int:
    """Write a tiny model of a family; gives its parameters. Raises what transformers raises."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from fitune.testing import write_tiny_tokenizer

    tokens = {key: TINY[key] for key in TINY if key.endswith("_token_id")}
    changes = {**(TINY if name not in CONFIGS else {}), **CONFIGS.get(name, {}), **tokens, **MORE.get(name, {})}
    config: Any = AutoConfig.for_model(name, **changes)
    with torch.device("meta"):
        size: int = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    if size > LARGEST:
        raise RuntimeError(f"{size} parameters: no tiny one")
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config)
    ids = torch.randint(0, 256, (2, 16))
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    model.save_pretrained(directory)
    write_tiny_tokenizer(directory)
    return size


def write_recipes(home: Path) -> None:
    """A recipe of four steps, and one of packed rows."""
    import tomli_w

    from fitune.testing import write_tiny_data

    write_tiny_data(home / "data.jsonl")
    (home / "stop.py").write_text(STOP, encoding="utf-8")
    for file, more in (
        ("recipe.toml", []),
        ("packed.toml", [{"use": "tokenize"}, {"use": "truncate"}, {"use": "pack"}]),
    ):
        recipe = {
            "name": "family",
            "plugins": ["stop.py"],
            "model": {"use": "hf", "path": "model", "dtype": "float32"},
            "adapter": {"use": "lora", "r": 4, "targets": "all-linear"},
            "data": {
                "cache": False,
                "source": [{"use": "jsonl", "path": "data.jsonl"}],
                "stage": [{"use": "chat"}, *more],
            },
            "train": {"micro_batch": 2, "length": 96, "steps": 4, "learning_rate": 1e-3},
        }
        (home / file).write_text(tomli_w.dumps(recipe), encoding="utf-8")


def resume(home: Path) -> None:
    """Stop after two steps and go on. Raises `RuntimeError` where the bytes differ from those of the whole run."""
    os.environ["STOP_AFTER"] = "2"
    with contextlib.suppress(RuntimeError):  # it ends with 3
        ft("run", home / "recipe.toml", "--out", home / "stopped")
    del os.environ["STOP_AFTER"]
    ft("run", home / "stopped")
    one, other = ((home / run / "adapter" / "adapter_model.safetensors").read_bytes() for run in ("whole", "stopped"))
    if one != other:
        raise RuntimeError("the adapter is another than that of the run that was not stopped")


def tried(name: str, verbs: Sequence[str] = VERBS) -> Json:
    """One family, with these verbs."""
    warnings.simplefilter("ignore")
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    os.environ["FT_ALLOW_PLUGINS"] = "1"  # the one that stops a run
    row: Json = {"family": name}
    with tempfile.TemporaryDirectory(prefix="family-") as directory, contextlib.redirect_stderr(io.StringIO()):
        home = Path(directory)
        try:
            row["parameters"] = write_model(name, home / "model")
        except BaseException as error:
            return {**row, "not made": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        write_recipes(home)
        steps: dict[str, Callable[[], object]] = {
            "run": lambda: ft("run", home / "recipe.toml", "--out", home / "whole"),
            "plan": lambda: ft("plan", home / "recipe.toml", "--gpu", "a10g", "--json"),
            "resume": lambda: resume(home),
            "packed": lambda: ft("run", home / "packed.toml", "--out", home / "packed"),
            "merge": lambda: ft("merge", home / "whole", "--to", home / "merged", "--dtype", "float32"),
            "generate": lambda: ft("generate", home / "whole", "--prompt", "Count.", "--max-new-tokens", 3),
        }
        for verb in verbs:
            start = time.perf_counter()
            try:
                steps[verb]()
                row[verb] = "ok"
            except BaseException as error:
                text = " ".join(str(error).split()).replace(directory, "HOME")
                row[verb] = text[:400] if isinstance(error, RuntimeError) else f"{type(error).__name__}: {text[:300]}"
            row.setdefault("seconds", {})[verb] = round(time.perf_counter() - start, 1)
    return row


def merged(before: list[Json], now: list[Json]) -> list[Json]:
    """Rows with what was found now in the place of what was before, verb by verb; sorted by family."""
    rows = {row["family"]: row for row in before}
    for row in now:
        old = rows.get(row["family"], {})
        seconds = {**old.get("seconds", {}), **row.get("seconds", {})}
        kept = {key: value for key, value in old.items() if key != "not made"}
        rows[row["family"]] = {**kept, **row, "seconds": seconds} if "not made" not in row or not kept else old
    return [rows[name] for name in sorted(rows)]


def families() -> list[str]:
    """Every `model_type` with a causal language model in the installed transformers."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def main() -> None:
    """Try every family and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--only", nargs="*", help="families in place of all")
    parser.add_argument("--verbs", nargs="*", choices=VERBS, default=VERBS, help="some alone: the rest stays in --out")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--minutes", type=float, default=60, help="wait no longer for what is not done")
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    start, rows = time.perf_counter(), []
    pool = context.Pool(asked.processes, maxtasksperchild=1 if "run" in asked.verbs else 30)
    jobs = [(name, pool.apply_async(tried, (name, asked.verbs))) for name in asked.only or families()]
    for name, job in jobs:
        left = 60 * asked.minutes - (time.perf_counter() - start)
        try:
            rows.append(job.get(timeout=max(left, 0.1)))
        except BaseException as error:
            rows.append(
                {"family": name, "not made": f"{type(error).__name__}: no time was left, or it ended its process"}
            )
        print(json.dumps(rows[-1]), flush=True)
    before = json.loads(asked.out.read_text(encoding="utf-8")) if asked.out.is_file() else {}
    rows = merged(before.get("rows", []), rows) if asked.only or asked.verbs != VERBS else rows
    made = [row for row in rows if "not made" not in row]
    now = {
        "date": datetime.date.today().isoformat(),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "only": asked.only or "all",
    }
    about = {
        "command": "python benchmarks/families.py",
        "swept": [*before.get("swept", []), {"verbs": [*asked.verbs], **now}],
        "families": len(rows),
        "made": len(made),
        **{verb: sum(row.get(verb) == "ok" for row in made) for verb in VERBS},
    }
    text = json.dumps(about, indent=1).removesuffix("\n}") + ',\n "rows": [\n'
    asked.out.write_text(text + ",\n".join(map(json.dumps, rows)) + "\n]}\n", encoding="utf-8")
    print(json.dumps(about))
    for process in multiprocessing.active_children():
        process.kill()
    os._exit(0)


if __name__ == "__main__":
    main()
