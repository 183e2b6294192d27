"""Keys of other tools, and keys in the wrong table: the error says what a recipe calls them, and where they go."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from fitune.errors import RecipeError
from fitune.plugin.options import describe
from fitune.recipe.foreign.known import ALL, SETS
from fitune.recipe.foreign.told import CORE, MEANT
from fitune.recipe.model import KEYS as NEW_TOKENS
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
        ("train.add_tokens=['<a>']", "What other tools call so is here: [model] add_tokens"),
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


def test_what_is_named_is_there() -> None:
    """Each plugin, table and key that an answer names."""
    registry = open_registry()
    records = {provided.record.name: provided.record for provided in registry.provided}
    options = {name: {option.name for option in describe(record.options)} for name, record in records.items()}
    of_kind: dict[str, set[str]] = {"model": {*NEW_TOKENS}, "adapter": {"from"}, "objective": {"reference"}}
    kinds = {"model loader": "model", "adapter": "adapter", "objective": "objective"}
    for provided in registry.provided:
        if provided.kind in kinds:
            of_kind[kinds[provided.kind]] |= options[provided.record.name]
    for table, core in CORE.items():
        of_kind[table] = {field.name for field in dataclasses.fields(core)}
    for name, known in {**SETS, **ALL}.items():
        assert set(re.findall(r'use = "([a-z0-9-]+)"', known.says)) <= set(records), name
        for table, key in re.findall(r"(?<!\[)\[(\w+)\] (\w+)", known.says):
            assert key == "use" or key in of_kind[table], (name, known.says)
        for used, option in re.findall(r'use = "([a-z0-9-]+)", (\w+) = ', known.says):
            assert option in options[used], (name, known.says)


def test_a_key_of_ones_own_is_not_taken_for_another_tools() -> None:
    own = {field.name for options in CORE.values() for field in dataclasses.fields(options)}
    assert "learning_rate" in ALL
    assert not own & set(MEANT)
