"""A run that is killed and goes on, beside one that nothing disturbs: the same losses, the same adapter?

    python benchmarks/resume.py --model DIR --data gsm8k.jsonl --out benchmarks/resume.json

DIR holds DeepSeek-LLM 7B or a checkpoint of its shape, the data are problems and answers. Each case is a recipe: `ft
run` of it to its end, then `ft run` of it in another directory, killed with SIGKILL once its metrics show a step that
was drawn beforehand, and `ft run DIRECTORY` as often as it takes. `--dry` does it on a CPU with a tiny model.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "fit"))
from measure import circumstances

RECIPE = Path(__file__).parent.parent / "recipes" / "deepseek7b_g5.toml"
COMMAND = "python benchmarks/resume.py --model DIR --data gsm8k.jsonl --out FILE"
STEPS, EVERY, KILLS, SEED = 10, 3, 1, 20261124
CASES = {
    "recipe": [],
    "deterministic": ["deterministic=true"],
    "deterministic, dropout, NF4, 8-bit AdamW": [
        "deterministic=true",
        "adapter.dropout=0.1",
        "memory.strategy=[{use='accumulation',steps=4},{use='chunked-loss'},{use='nf4'},{use='adamw-8bit'}]",
    ],
}
Json = dict[str, Any]


def main() -> None:
    """Make all runs and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--data", type=Path, help="JSON Lines with question and answer")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--dry", action="store_true", help="on a CPU, with a tiny model of its own")
    arguments = parser.parse_args()
    draw = random.Random(SEED)
    found: Json = {key: value for key, value in circumstances(0, COMMAND).items() if key != "allocator_limit_gib"}
    with tempfile.TemporaryDirectory() as directory:
        recipe, common = ready(arguments, Path(directory))
        found["cases"] = {}
        for number, name in enumerate(arguments.cases):
            kills = sorted(draw.sample(range(EVERY + 1, STEPS), KILLS))
            changes = [*common, *CASES[name]]
            done = case(recipe, changes, Path(directory) / str(number), kills, dry=arguments.dry)
            found["cases"][name] = done
            print(name, {key: value for key, value in done.items() if key not in ("loss", "memory")}, flush=True)
            if arguments.out:
                arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def ready(arguments: argparse.Namespace, home: Path) -> tuple[Path, list[str]]:
    """The recipe, and what all runs have otherwise."""
    from fitune.testing import write_recipe

    steps = [f"train.steps={STEPS}", "train.warmup_steps=2", f"checkpoint.steps={EVERY}", "memory.rehearse=false"]
    if arguments.dry:
        return write_recipe(home / "recipe", {"train": {"micro_batch": 1, "length": 128}}), steps
    sys.path.insert(0, str(Path(__file__).parent))
    from deepseek7b_g5 import make_tokenizer

    make_tokenizer(arguments.model, arguments.data)
    stages = ["prompt-completion", "chat", "tokenize", "truncate", "pack"]
    tables = [{"use": use, **({"prompt": "question", "completion": "answer"} if "-" in use else {})} for use in stages]
    from fitune.plugin.options import toml_text

    strategies = "[{use='accumulation',steps=4},{use='chunked-loss'},{use='expandable-segments'}]"
    data = [f"data.path={arguments.data.resolve()}", f"data.stage={toml_text(tables)}"]
    return RECIPE, [
        f"model.path={arguments.model.resolve()}",
        *data,
        f"memory.strategy={strategies}",
        "memory.fast=false",
        *steps,
    ]


def case(recipe: Path, overrides: list[str], home: Path, kills: list[int], *, dry: bool) -> Json:
    """One recipe, undisturbed and killed."""
    sets = [part for one in overrides for part in ("--set", one)]
    start = time.perf_counter()
    run([str(recipe), "--out", str(home / "plain"), *sets], home)
    plain = time.perf_counter() - start
    given, starts = [str(recipe), "--out", str(home / "run"), *sets], 0
    for kill in [*kills, None]:
        run(given, home, kill=kill)
        given, starts = [str(home / "run")], starts + 1
    one, other = curve(home / "plain"), curve(home / "run")
    pairs = list(zip(one, other, strict=True))
    checkpoints = lines(home / "run", "checkpoint")
    return {
        "killed_once_step_was_made": kills,
        "went_on_from_step": [line["step"] for line in lines(home / "run", "resume")],
        "starts": starts,
        "losses_equal_to_the_bit": sum(a == b for a, b in pairs),
        "steps": len(pairs),
        "largest_relative_difference": max(abs(a / b - 1) for a, b in pairs),
        "adapter_equal_to_the_bit": digest(home / "plain") == digest(home / "run"),
        "memory": json.loads((home / "plain" / "memory.json").read_text()) if not dry else None,
        "checkpoint_bytes": max(line["bytes"] for line in checkpoints),
        "checkpoint_seconds": [round(line["seconds"], 3) for line in checkpoints],
        "step_seconds": [round(line["seconds"], 3) for line in lines(home / "plain", "step")],
        "seconds_of_the_undisturbed_run": round(plain, 1),
        "loss": one,
    }


def run(arguments: list[str], home: Path, *, kill: int | None = None) -> None:
    """One start of `ft run`; killed once its metrics show this step."""
    home.mkdir(exist_ok=True)
    with (home / "log.txt").open("a") as log:
        process = subprocess.Popen([sys.executable, "-m", "fitune", "run", *arguments], stdout=log, stderr=log)
        while process.poll() is None:
            time.sleep(0.02)
            if kill is not None and len(curve(home / "run")) >= kill:
                process.send_signal(signal.SIGKILL)
                process.wait()
    if process.returncode not in (0, -signal.SIGKILL if kill is not None else 0):
        sys.exit((home / "log.txt").read_text()[-3000:])


def lines(directory: Path, event: str) -> list[Json]:
    """Lines of `metrics.jsonl`, a torn last one left out."""
    file = directory / "metrics.jsonl"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    whole = [json.loads(line) for line in text.split("\n")[:-1]]
    return [line for line in whole if line["event"] == event]


def curve(directory: Path) -> list[float]:
    """The losses of a run."""
    return [line["loss"] for line in lines(directory, "step")]


def digest(directory: Path) -> str:
    """Of the adapter that a run saved."""
    return hashlib.sha256((directory / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
