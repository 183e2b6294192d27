"""The index of recipes: each is checked, composed as the index says, and forecast to take what it says of its card."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fitune.memory.cards.cards import Card, find_card
from fitune.memory.cards.several import several
from fitune.memory.fit.choices import composed
from fitune.memory.forecast import forecast
from fitune.memory.shapes import of_recipe
from fitune.memory.trace.twins import twins_of
from fitune.plugin.recipe import Recipe
from fitune.plugin.registry import Registry
from fitune.testing import open_registry
from support.paths import ROOT

INDEX: list[dict[str, Any]] = json.loads((ROOT / "recipes" / "index.json").read_text(encoding="utf-8"))


@cache
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "make_recipes.py"), run_name="make_recipes")


def card_of(title: str) -> Card:
    """A card, or several: "4 x H100-80GB"."""
    count, _, name = title.rpartition(" x ")
    return several(find_card(name), int(count)) if count else find_card(name)


def test_it_lists_all_and_the_page_is_made_of_it() -> None:
    check: Callable[[list[str]], str | None] = script()["main"]
    assert check(["--check"]) is None
    assert len(INDEX) >= 30


def test_cards_of_all_sizes_have_one() -> None:
    cards = {entry["card"] for entry in INDEX}
    assert {"RTX 4060 Ti 8GB", "RTX 3060", "RTX 4080", "RTX 4090", "A6000", "H100-80GB"} <= cards


@pytest.mark.parametrize("entry", INDEX, ids=lambda entry: entry["name"])
def test_it_takes_what_the_index_says_and_fits(entry: dict[str, Any], tmp_path: Path) -> None:
    registry = open_registry()
    recipe_of: Callable[[str, Path, Registry], Recipe] = script()["recipe_of"]
    asked = recipe_of(entry["name"], tmp_path, registry)
    named = {use.record.name for use in asked.strategies}
    tables = [table for table in entry["strategies"] if table["use"] not in named]
    recipe = composed(asked, registry, tables, entry["micro_batch"], None)
    found = forecast(recipe, of_recipe(recipe), card_of(entry["card"]), twins_of(registry))
    assert (found.allocated, found.reserved) == (entry["allocated"], entry["reserved"])
    assert found.passes is entry["fits"] is True
