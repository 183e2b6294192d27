"""What tests of every objective share: each as a recipe names it, and rows that all of them learn from."""

from __future__ import annotations

import json
from pathlib import Path

from fitune.testing import write_recipe

OBJECTIVES: dict[str, str] = {
    "dpo": '{use="dpo"}',
    "dpo, prepared": '{use="dpo", reference="prepared"}',
    "ipo": '{use="ipo"}',
    "kto": '{use="kto"}',
    "kto, prepared": '{use="kto", reference="prepared"}',
    "orpo": '{use="orpo"}',
    "simpo": '{use="simpo"}',
    "cpo": '{use="cpo"}',
    "reward": '{use="reward"}',
}
WRITING = [name for name in OBJECTIVES if name != "reward"]
PAIRS = [
    {"prompt": "ab" * (n % 3 + 1), "chosen": "yes " * (1 + n % 2), "rejected": "no " * (1 + n % 3)} for n in range(12)
]


def asked(name: str) -> str:
    """The override that names an objective."""
    return f"objective={OBJECTIVES[name]}"


def write_pairs(file: Path, rows: int = len(PAIRS)) -> Path:
    """Write a file of pairs."""
    file.write_text("\n".join(map(json.dumps, PAIRS[:rows])) + "\n", encoding="utf-8")
    return file


def write_preference_recipe(directory: Path, changes: dict[str, object] | None = None) -> Path:
    """Write the tiny recipe with pairs for its data, and others held out."""
    settings = {"steps": 4, "micro_batch": 2, "length": 96, "learning_rate": 1e-2}
    path = write_recipe(
        directory,
        {"eval": {"source": [{"use": "jsonl", "path": "held_out.jsonl"}]}, "train": settings, **(changes or {})},
    )
    write_pairs(path.parent / "data.jsonl")
    write_pairs(path.parent / "held_out.jsonl", rows=4)
    return path
