"""What `quality.py` and `fp8_quality.py` share: their rows, their recipe but for its model, and what a run came to."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Json = dict[str, Any]
SEEDS = (1, 2, 3)
HELD_OUT = 96
SHORT = 350
"""Letters of a question and its answer, together, that are taken: rows of fewer than 160 tokens."""

NOTES = re.compile(r"<<.*?>>")
"""What GSM8K's answers say to a calculator."""

RECIPE = """\
name = "quality"
seed = {seed}

[model]
{model}
dtype = "bfloat16"

[adapter]
use = "lora"
r = 16
alpha = 32
targets = "all-linear"

[memory]
fast = false
strategy = [{strategies}]

[[data.source]]
use = "jsonl"
path = "train.jsonl"

[[data.stage]]
use = "chat"

[train]
micro_batch = {rows}
length = 160
steps = {steps}
learning_rate = 5e-4
schedule = "cosine"
warmup_steps = 10

[eval]
micro_batch = 16
every = {every}

[[eval.source]]
use = "jsonl"
path = "held_out.jsonl"
"""


def recipe(model: str, strategies: Sequence[str], *, seed: int, steps: int, rows: int) -> str:
    """The recipe of a run: lines of its `[model]`, and names of its memory strategies, to which nothing is added."""
    named = ", ".join(f'{{use = "{name}"}}' for name in strategies)
    return RECIPE.format(model=model, strategies=named, seed=seed, steps=steps, rows=rows, every=max(1, steps // 2))


def write_data(place: Path, source: Path) -> int:
    """Write short rows as conversations, the last ones held out; gives the number of those to train on."""
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row["answer"] = NOTES.sub("", row["answer"])
    short = [row for row in rows if len(row["question"]) + len(row["answer"]) <= SHORT]
    lines = [
        json.dumps({"messages": [
            {"role": "system", "content": "Solve."},
            {"role": "user", "content": row["question"]},
            {"role": "assistant", "content": row["answer"]},
        ]})
        for row in short
    ]  # fmt: skip
    for name, part in (("train", lines[:-HELD_OUT]), ("held_out", lines[-HELD_OUT:])):
        (place / f"{name}.jsonl").write_text("\n".join(part) + "\n", encoding="utf-8")
    return len(lines) - HELD_OUT


def losses_of(run: Path, steps: int) -> Json | None:
    """Held-out losses by step, and those of training; None of a run that has not come to its last evaluation."""
    file = run / "metrics.jsonl"
    written = file.read_text(encoding="utf-8").rpartition("\n")[0].splitlines() if file.exists() else []
    found: dict[str, dict[int, float]] = {"evaluation": {}, "step": {}}
    for line in map(json.loads, written):
        if line["event"] in found:
            found[line["event"]][line["step"]] = line["loss"]
    if steps not in found["evaluation"]:
        return None
    return {
        "held_out": {str(step): round(loss, 5) for step, loss in found["evaluation"].items()},
        "losses": [round(loss, 4) for loss in found["step"].values()],
    }
