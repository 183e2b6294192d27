"""`[train] accumulation`: what it sets, beside what it cannot stand, and that strategies given anew leave it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fitune import RecipeError, run
from fitune.compose.model import planned
from fitune.memory.changes import accumulated
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry, write_recipe


def test_it_sets_the_number_of_micro_batches(tmp_path: Path) -> None:
    recipe = read_recipe(write_recipe(tmp_path, {"train": {"accumulation": 3}}), open_registry())
    assert planned(recipe, gpu=False)[1].accumulation == 3


def test_other_strategies_do_not_change_the_batch(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, {"train": {"accumulation": 3}, "memory": {"strategy": [{"use": "chunked-loss"}]}})
    recipe = read_recipe(path, open_registry(), ["memory.strategy=[]"])
    assert planned(recipe, gpu=False)[1].accumulation == 3


def test_it_is_the_strategy_by_another_name(tmp_path: Path) -> None:
    as_key = write_recipe(tmp_path / "key", {"train": {"accumulation": 2}})
    as_strategy = write_recipe(tmp_path / "strategy", {"memory": {"strategy": [{"use": "accumulation", "steps": 2}]}})
    losses = []
    for path in (as_key, as_strategy):
        directory = run(path, path.parent / "run", registry=open_registry())
        lines = (directory / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line).get("loss") for line in lines])
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"memory": {"strategy": [{"use": "accumulation", "steps": 2}]}},
            r'"accumulation" says what \[train\] accumulation says already\. Keep one of them',
        ),
        (
            {"memory": {"fit": "a10g"}, "train": {"accumulation": 2, "length": 128, "batch_tokens": 256}},
            '"accumulation" says what "batch_tokens" leaves to be chosen',
        ),
        ({"train": {"accumulation": 0}}, '"accumulation" is 0'),
    ],
)
def test_what_contradicts_it_is_refused(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    tables = {"train": {"accumulation": 2}, **changes}
    with pytest.raises(RecipeError, match=said):
        read_recipe(write_recipe(tmp_path, tables), open_registry())


def test_half_the_rows_twice_as_often_keeps_the_batch(tmp_path: Path) -> None:
    recipe = read_recipe(write_recipe(tmp_path, {"train": {"accumulation": 3}}), open_registry())
    assert accumulated(recipe, open_registry(), 2) == ("train.accumulation", 6)
