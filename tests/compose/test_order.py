"""Memory strategies work in an order that their records ask for, and otherwise in the recipe's."""

from __future__ import annotations

from pathlib import Path

import pytest

from fitune import MemoryStrategy, NoOptions, PluginError, Strategy
from fitune.compose.model import planned
from fitune.compose.order import in_order
from fitune.memory.cards.cards import find_card
from fitune.memory.ledger import make_ledger
from fitune.memory.shapes import shapes_of_recipe
from fitune.memory.trace.run import trace
from fitune.plugin.recipe import Use
from support.architectures import recipe_of

WIDE = {"hidden_size": 256, "intermediate_size": 1024}


def made(name: str, *before: str) -> Use[MemoryStrategy[NoOptions]]:
    record = MemoryStrategy(name=name, summary=name, options=NoOptions, make=lambda options: Strategy(), before=before)
    return Use(record=record, options=NoOptions())


def names(*uses: Use[MemoryStrategy[NoOptions]]) -> list[str]:
    return [use.record.name for use in in_order(uses)]


def test_what_no_record_speaks_of_stays_as_it_stands() -> None:
    assert names(made("c"), made("a"), made("b", "x")) == ["c", "a", "b"]


def test_each_stands_before_those_that_it_names() -> None:
    assert names(made("c"), made("d"), made("a", "c"), made("b", "a")) == ["d", "b", "a", "c"]


def test_orders_that_exclude_each_other_are_an_error() -> None:
    with pytest.raises(PluginError, match='"a" and "b" are each to work before another of them'):
        names(made("a", "b"), made("c"), made("b", "a"))


@pytest.mark.parametrize(
    "pair",
    [("tiled-mlp", "recompute-pointwise"), ("fused-rms-norm", "tiled-mlp"), ("fused-rms-norm", "recompute-pointwise")],
)
def test_both_orders_take_the_same_memory(tmp_path: Path, pair: tuple[str, str]) -> None:
    peaks = []
    for strategies in (pair, pair[::-1]):
        recipe = recipe_of(tmp_path / strategies[0], "llama", *strategies, length=8192, rows=1, changes=WIDE)
        peaks.append(make_ledger(trace(recipe, shapes_of_recipe(recipe, 1), find_card("a10g")).log).peak)
    assert peaks[0] == peaks[1]


def test_another_order_than_the_recipes_is_told(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "llama", "recompute-pointwise", "tiled-mlp")
    strategies, plan = planned(recipe, gpu=False)
    assert [use.record.name for use, _ in strategies] == ["tiled-mlp", "recompute-pointwise"]
    assert plan.notices == ("memory strategies work in this order, not the recipe's: tiled-mlp, recompute-pointwise",)
    recipe = recipe_of(tmp_path / "right", "llama", "tiled-mlp", "recompute-pointwise")
    assert planned(recipe, gpu=False)[1].notices == ()
