"""A recipe that can be checked without torch: its model is a directory with a config alone. Not for training."""

from __future__ import annotations

from pathlib import Path

LIGHT = """\
name = "light"

[model]
use = "hf"
path = "model"

[adapter]
use = "lora"

[[memory.strategy]]
use = "accumulation"
steps = 2

[[data.source]]
use = "jsonl"
path = "data.jsonl"

[[data.stage]]
use = "chat"

[train]
steps = 3
"""


def write_light(directory: Path, text: str = LIGHT) -> Path:
    """Write the recipe and the files that it names; gives the recipe's path."""
    (directory / "model").mkdir(parents=True)
    (directory / "model" / "config.json").write_text("{}", encoding="utf-8")
    (directory / "data.jsonl").write_text('{"messages": []}\n', encoding="utf-8")
    recipe = directory / "r.toml"
    recipe.write_text(text, encoding="utf-8")
    return recipe
