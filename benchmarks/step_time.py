"""The time of a step: forecast beside measured, by `ft plan` and `ft run` themselves, on this machine's card.

    python benchmarks/step_time.py --model DIR --out benchmarks/step_time.json
    python benchmarks/step_time.py --model DIR --only plain --only nf4 --length 4096

`--model` is a directory with weights (random ones will do) and configuration; a tokenizer of single bytes is put beside
it where it has none. Each composition is planned (`ft plan --json`), then run for a few steps in a process of its own
(`ft run`), whose `metrics.jsonl` says what a step took; the first three are left out of the median. The file is written
after each.
"""

from __future__ import annotations

import argparse
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
from measure import circumstances

Json = dict[str, Any]

WARM_UP = 3
PATIENCE = 300
"""Seconds for one run."""

FUSED: list[Json] = [{"use": "fused-rms-norm"}, {"use": "fused-lora"}]
LOSS: list[Json] = [{"use": "chunked-loss"}, {"use": "expandable-segments"}]
CASES: dict[str, Json] = {
    "plain": {"strategies": []},
    "chunked": {"strategies": LOSS},
    "fused": {"strategies": [*FUSED, *LOSS]},
    "recompute": {"strategies": [*FUSED, *LOSS, {"use": "recompute-pointwise"}]},
    "checkpointed": {"strategies": [*FUSED, *LOSS, {"use": "gradient-checkpointing"}]},
    "checkpointed 8": {"strategies": [*FUSED, *LOSS, {"use": "gradient-checkpointing", "layers": 8}]},
    "keep attention": {"strategies": [*FUSED, *LOSS, {"use": "gradient-checkpointing", "keep": "attention"}]},
    "accumulated": {"strategies": [*FUSED, *LOSS, {"use": "accumulation", "steps": 4}]},
    "offloaded": {"strategies": [*FUSED, *LOSS, {"use": "offload-checkpoints"}]},
    "nf4": {"strategies": [*FUSED, *LOSS, {"use": "nf4"}]},
    "rank 16 on q and v": {"strategies": [*FUSED, *LOSS], "r": 16, "targets": ["q_proj", "v_proj"]},
    "fit": {"strategies": [], "fit": True},
}
"""By name: what differs from LoRA r = 4 on all linear layers, one row to a micro-batch."""


def main() -> None:
    """Plan and run each composition, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--only", action="append", choices=list(CASES), help="may be repeated")
    parser.add_argument("--length", type=int, action="append", help="tokens of a row; may be repeated [2048, 4096]")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--gpu", help="plan for this card, and do not run: needs no card")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    give_tokenizer(arguments.model)
    command = "python benchmarks/step_time.py --model DIR"
    whole: Json = {**circumstances(0.0, command), "rows": []}
    del whole["allocator_limit_gib"]
    for length in arguments.length or (2048, 4096):
        for name in arguments.only or CASES:
            row = {"case": name, "length": length, **compared(name, length, arguments)}
            whole["rows"].append(row)
            arguments.out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
            print(line(row), flush=True)


def compared(name: str, length: int, arguments: argparse.Namespace) -> Json:
    """What is forecast of a composition, and what it takes."""
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        recipe = write_recipe(home, name, length, arguments)
        on = ["--gpu", arguments.gpu] if arguments.gpu else []
        planned = ft("plan", str(recipe), "--json", *on)
        if planned.returncode:
            return {"failed": planned.stderr.strip().splitlines()[-1:]}
        told = json.loads(planned.stdout)
        row: Json = {"forecast": told["step"], "allocated": told["allocated"]}
        if arguments.gpu:
            return row
        start = time.perf_counter()
        ran = ft("run", str(recipe), "--out", str(home / "run"))
        if ran.returncode:
            return {**row, "failed": ran.stderr.strip().splitlines()[-1:]}
        return {**row, "measured": {**figures(home / "run"), "seconds_of_the_run": time.perf_counter() - start}}


def figures(run: Path) -> Json:
    """Of a run's steps."""
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if line.get("event") == "step"][WARM_UP:]
    seconds = [step["seconds"] for step in steps]
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    return {
        "seconds": statistics.median(seconds),
        "all": seconds,
        "tokens": steps[-1]["tokens"],
        "allocated": record["memory"]["peak"],
    }


def line(row: Json) -> str:
    """A row, as a person reads it."""
    told, real = row.get("forecast"), row.get("measured")
    where = f"{row['case']:<20} {row['length']:>6}"
    if told is None or (real is None and "failed" in row):
        return f"{where}  {row['failed']}"
    parts = " ".join(f"{name} {told[name]:.4f}" for name in ("card", "host", "link"))
    if real is None:
        return f"{where}  forecast {told['seconds']:.4f} s ({parts}); {told['rates']}"
    error = 100 * (told["seconds"] / real["seconds"] - 1)
    return f"{where}  forecast {told['seconds']:.4f} s, measured {real['seconds']:.4f} s: {error:+.1f} %  ({parts})"


def write_recipe(home: Path, name: str, length: int, arguments: argparse.Namespace) -> Path:
    """The recipe of a case, with rows of its length."""
    case = CASES[name]
    accumulated = next((one["steps"] for one in case["strategies"] if one["use"] == "accumulation"), 1)
    texts = ("".join(chr(97 + (at * at + row) % 26) for at in range(length - 1)) for row in range(2 * accumulated))
    (home / "data.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    table = {
        "name": "step-time",
        "model": {"use": "hf", "path": str(arguments.model.resolve()), "dtype": "bfloat16"},
        "adapter": {"use": "lora", "r": case.get("r", 4), "alpha": 8, "targets": case.get("targets", "all-linear")},
        "memory": {"strategy": case["strategies"], **({"fit": True} if case.get("fit") else {})},
        "data": {
            "source": [{"use": "jsonl", "path": "data.jsonl"}],
            "stage": [{"use": "plain-text"}, {"use": "tokenize"}],
        },
        "train": {"length": length, "steps": arguments.steps, "schedule": "constant"},
    }
    path = home / "recipe.toml"
    path.write_text(tomli_w.dumps(table), encoding="utf-8")
    return path


def ft(*words: str) -> subprocess.CompletedProcess[str]:
    """Run `ft`."""
    return subprocess.run(
        [sys.executable, "-m", "fitune", *words], capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def give_tokenizer(model: Path) -> None:
    """Put a tokenizer of single bytes into a model's directory, where there is none."""
    if (model / "tokenizer.json").exists():
        return
    from fitune.testing import write_tiny_tokenizer

    with tempfile.TemporaryDirectory() as directory:
        made = Path(directory) / "tokenizer"
        write_tiny_tokenizer(made)
        for file in made.iterdir():
            (model / file.name).write_bytes(file.read_bytes())


if __name__ == "__main__":
    main()
