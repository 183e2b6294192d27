"""Keys of other tools, and keys in the wrong table: the error says what a recipe calls them, and where they go."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from fitune.errors import RecipeError
from fitune.plugin.options import describe
from fitune.recipe.foreign import CORE, MEANT
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry
from support.light import write_light


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_light(tmp_path / "light")


def told(recipe: Path, override: str) -> str:
    with pytest.raises(RecipeError) as caught:
        read_recipe(recipe, open_registry(), [override])
    (line,) = caught.value.lines
    return line


@pytest.mark.parametrize(
    ("override", "fix"),
    [
        ("train.lr=1e-4", "What other tools call so is here: [train] learning_rate"),
        ("train.LR=1e-4", "What other tools call so is here: [train] learning_rate"),
        ("lr=1e-4", "What other tools call so is here: [train] learning_rate"),
        ("train.per_device_train_batch_size=4", "What other tools call so is here: [train] micro_batch"),
        ("train.gradient_accumulation_steps=4", "What other tools call so is here: [train] accumulation"),
        ("train.packing=true", 'What other tools call so is here: [[data.stage]] use = "pack"'),
        ("model.load_in_4bit=true", 'What other tools call so is here: [[memory.strategy]] use = "nf4"'),
        ("adapter.lora_alpha=8", "What other tools call so is here: [adapter] alpha"),
        ("lora.r=4", 'What other tools call so is here: [adapter] use = "lora"'),
        ("learning_rate=1e-4", '"learning_rate" is a key of [train]'),
        ("train.r=4", '"r" is a key of [adapter] use = "lora"'),
        ("train.seed=4", '"seed" is a key of the part above the first table'),
        ("train.lenght=4", 'Did you mean "length"?'),
    ],
)
def test_what_was_meant_is_told(recipe: Path, override: str, fix: str) -> None:
    assert told(recipe, override).endswith(f". {fix}")


def test_what_nobody_has_is_told_as_before(recipe: Path) -> None:
    assert ". Known: " in told(recipe, "train.zzzzqqqq=1")


@pytest.mark.parametrize("name", MEANT)
def test_what_is_named_is_there(name: str) -> None:
    """Each plugin, table and key that an answer names."""
    registry, said = open_registry(), MEANT[name]
    for used in re.findall(r'use = "([a-z0-9-]+)"', said):
        assert used in {provided.record.name for provided in registry.provided}
    for table, key in re.findall(r"(?<!\[)\[(\w+)\] (\w+)", said):
        if table in CORE:
            assert key in {field.name for field in dataclasses.fields(CORE[table])}
        elif key != "use":
            kind = {"model": "model loader", "adapter": "adapter"}[table]
            records = [provided.record for provided in registry.provided if provided.kind == kind]
            assert any(key in {option.name for option in describe(record.options)} for record in records)
    for used, option in re.findall(r'use = "([a-z0-9-]+)", (\w+) = ', said):
        record = next(provided.record for provided in registry.provided if provided.record.name == used)
        assert option in {one.name for one in describe(record.options)}
    assert name not in {field.name for options in CORE.values() for field in dataclasses.fields(options)}
