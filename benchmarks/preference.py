"""Memory and speed of DPO: beside SFT of the same tokens, by `ft run`, and beside TRL's trainer on the same pairs.

    python benchmarks/preference.py --model DIR --out benchmarks/preference.json
    python benchmarks/preference.py --model DIR --gpu a10g          plans alone, and needs no card

`--model` is a directory with weights (random ones will do) and configuration; a tokenizer of single bytes is put beside
it where it has none. Every run is a process of its own. fitune's rows are a pair each, of exactly `--length` tokens, as
an SFT row has; TRL's pairs are of the same texts, and of the tokens that its own preparation makes of them. TRL has its
own defaults, but for bfloat16, the same LoRA, gradient checkpointing and what `TRL` says.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tomli_w

sys.path.insert(0, str(Path(__file__).parent / "fit"))
from commands import WARM_UP, figures, ft, give_tokenizer
from measure import circumstances

Json = dict[str, Any]

STRATEGIES: list[Json] = [
    {"use": "fast-layers"},
    {"use": "gradient-checkpointing"},
    {"use": "chunked-loss"},
    {"use": "fused-rms-norm"},
    {"use": "expandable-segments"},
]
CASES: dict[str, Json] = {
    "sft": {},
    "dpo, adapter off": {"use": "dpo", "reference": "adapter-off"},
    "dpo, prepared": {"use": "dpo", "reference": "prepared"},
    "kto": {"use": "kto"},
    "orpo": {"use": "orpo"},
}
TEMPLATE = 21
"""Tokens that the tokenizer's chat template adds to a question and its answer."""
ROWS, R, ALPHA, TARGETS = 8, 16, 32, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TRL: Json = {"per_device_train_batch_size": 1, "gradient_checkpointing": True, "bf16": True, "beta": 0.1}


def main() -> None:
    """Make all runs, and write what was measured after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--length", type=int, default=2048, help="tokens of a pair, and of a row of SFT")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--only", nargs="+", help="names of cases")
    parser.add_argument("--gpu", help="plan for this card, and do not run")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--trl", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.trl is not None:
        beside_trl(arguments)
        return
    give_tokenizer(arguments.model)
    whole: Json = {**circumstances(0.0, "python benchmarks/preference.py --model DIR"), "length": arguments.length}
    del whole["allocator_limit_gib"]
    whole["rows"] = []
    for name in arguments.only or (CASES if arguments.gpu else (*CASES, "trl dpo")):
        made = rival(arguments) if name == "trl dpo" else compared(name, arguments)
        whole["rows"].append({"case": name, **made})
        arguments.out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(whole["rows"][-1]), flush=True)


def pairs(length: int) -> list[Json]:
    """Pairs of so many bytes together; prompts are short, for a forecast counts every token as trained on."""
    asked = 8
    answer = length // 2 - asked - TEMPLATE
    return [
        {
            "prompt": "".join(chr(97 + (at * row) % 26) for at in range(asked)),
            "chosen": "".join(chr(97 + (at * at + row) % 26) for at in range(answer)),
            "rejected": "".join(chr(97 + (at * at * 3 + row) % 26) for at in range(answer)),
        }
        for row in range(1, ROWS + 1)
    ]


def write_recipe(home: Path, name: str, arguments: argparse.Namespace) -> Path:
    """The recipe of a case; SFT has rows of as many tokens as a pair has."""
    made = pairs(arguments.length)
    sft = [
        {"prompt": asked, "completion": (3 * row["chosen"])[: arguments.length - len(asked) - TEMPLATE]}
        for row in made
        for asked in [row["prompt"]]
    ]
    rows = sft if name == "sft" else made
    (home / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    table = {
        "name": "preference",
        "model": {"use": "hf", "path": str(arguments.model.resolve()), "dtype": "bfloat16"},
        "adapter": {"use": "lora", "r": R, "alpha": ALPHA, "targets": TARGETS},
        **({"objective": CASES[name]} if CASES[name] else {}),
        "memory": {"strategy": STRATEGIES, "fast": False},
        "data": {
            "source": [{"use": "jsonl", "path": "data.jsonl"}],
            "stage": [{"use": "prompt-completion" if name == "sft" else "preferences"}, {"use": "chat"}],
        },
        "train": {"length": arguments.length, "steps": arguments.steps, "schedule": "constant"},
    }
    path = home / "recipe.toml"
    path.write_text(tomli_w.dumps(table), encoding="utf-8")
    return path


def compared(name: str, arguments: argparse.Namespace) -> Json:
    """What is forecast, and what a run takes."""
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        recipe = write_recipe(home, name, arguments)
        planned = ft("plan", str(recipe), "--json", *(["--gpu", arguments.gpu] if arguments.gpu else []))
        if planned.returncode:
            return {"failed": planned.stderr.strip().splitlines()[-1:]}
        row: Json = {"forecast": {"allocated": json.loads(planned.stdout)["allocated"]}}
        if arguments.gpu:
            return row
        ran = ft("run", str(recipe), "--out", str(home / "run"))
        if ran.returncode:
            return {**row, "failed": ran.stderr.strip().splitlines()[-1:]}
        return {**row, "measured": figures(home / "run")}


def rival(arguments: argparse.Namespace) -> Json:
    """TRL's DPO of the same pairs, in a process of its own."""
    with tempfile.TemporaryDirectory() as directory:
        result = Path(directory) / "trl.json"
        asked = [f"--{name}={getattr(arguments, name)}" for name in ("model", "length", "steps")]
        ran = subprocess.run(
            [sys.executable, __file__, *asked, f"--trl={result}"], capture_output=True, text=True, check=False
        )
        if ran.returncode:
            return {"failed": ran.stderr.strip().splitlines()[-1:]}
        return {"measured": json.loads(result.read_text(encoding="utf-8"))}


def beside_trl(arguments: argparse.Namespace) -> None:
    """Train by TRL, and write seconds, tokens and the peak of what was allocated."""
    import torch
    import transformers
    from datasets import Dataset
    from peft import LoraConfig

    trl: Any = importlib.import_module("trl")

    seconds: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *given: Any, **named: Any) -> None:
            torch.cuda.synchronize()
            self.begun = time.perf_counter()

        def on_step_end(self, *given: Any, **named: Any) -> None:
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - self.begun)

    settings: Any = trl.DPOConfig(
        output_dir=str(arguments.trl.parent), max_steps=arguments.steps, max_length=arguments.length // 2, report_to=[],
        save_strategy="no", model_init_kwargs={"dtype": "bfloat16"}, **TRL,
    )  # fmt: skip
    trainer: Any = trl.DPOTrainer(
        model=str(arguments.model),
        args=settings,
        train_dataset=Dataset.from_list(pairs(arguments.length)),
        processing_class=transformers.AutoTokenizer.from_pretrained(str(arguments.model)),
        peft_config=LoraConfig(r=R, lora_alpha=ALPHA, target_modules=TARGETS, task_type="CAUSAL_LM"),
        callbacks=[Clock()],
    )
    row = trainer.train_dataset[0]
    tokens = 2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])
    trainer.train()
    told = {
        "seconds": statistics.median(seconds[WARM_UP:]),
        "all": seconds,
        "tokens": tokens,
        "allocated": torch.cuda.max_memory_allocated(),
        "version": trl.__version__,
    }
    arguments.trl.write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main()
