"""What the tests of prepared data share: a recipe that needs no model, its data, and how it is prepared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fitune.data.prepare import Prepared, context_of, held_out_data, training_data
from fitune.plugin.recipe import Recipe
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry, write_tiny_tokenizer

RECIPE = """\
name = "prepared"

[model]
use = "hf"
path = "model"

[adapter]
use = "lora"

[[data.source]]
use = "jsonl"
path = "data.jsonl"

[[data.stage]]
use = "chat"

[train]
length = 64
"""


def turns(question: str, answer: str) -> str:
    """A row: a question and its answer, a token a byte; the answer and its end are trained on."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages}) + "\n"


def numbered(rows: int) -> str:
    """So many rows that differ."""
    return "".join(turns(f"{n}?", f"{n}") for n in range(rows))


def write(directory: Path, data: str, text: str = RECIPE) -> Path:
    """Write a recipe, a tokenizer and data; there are no weights. Gives the recipe's path."""
    (directory / "model").mkdir(parents=True, exist_ok=True)
    (directory / "model" / "config.json").write_text("{}", encoding="utf-8")
    write_tiny_tokenizer(directory / "model")
    (directory / "data.jsonl").write_text(data, encoding="utf-8")
    path = directory / "r.toml"
    path.write_text(text, encoding="utf-8")
    return path


def read(path: Path, *sets: str, plugins: Sequence[object] = ()) -> Recipe:
    """The recipe, with the built-in plugins and these."""
    return read_recipe(path, open_registry(*plugins), sets)


def prepared(path: Path, *sets: str, plugins: Sequence[object] = ()) -> Prepared:
    """The training data of a recipe."""
    recipe = read(path, *sets, plugins=plugins)
    tokenizer = recipe.model.record.load_tokenizer(recipe.model.options)
    return training_data(recipe, context_of(recipe, tokenizer))


def held_out(path: Path, *sets: str, plugins: Sequence[object] = ()) -> Prepared | None:
    """The held-out data of a recipe."""
    recipe = read(path, *sets, plugins=plugins)
    tokenizer = recipe.model.record.load_tokenizer(recipe.model.options)
    return held_out_data(recipe, context_of(recipe, tokenizer))


def origins(data: Prepared | None) -> list[int]:
    """The rows of the file that the prepared ones come from."""
    assert data is not None
    return [example.origin.row for example in data.rows]
