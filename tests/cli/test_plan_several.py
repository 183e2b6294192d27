"""`ft plan --gpus` and `--where`: what a run takes of each of several cards, and which cards it would fit on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fitune.cli.main import main
from fitune.memory import where as where_module
from fitune.memory.cards.cards import Card, find_card
from fitune.memory.cards.several import OF_MORE
from fitune.memory.forecast import Forecast, forecast
from fitune.memory.shapes import Shapes, of_recipe
from fitune.memory.where import COUNTS, Looks, candidates, counts_of
from fitune.plugin.recipe import Recipe
from fitune.plugin.records import MemoryTwin
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry

SHARDED = ("--set", 'memory.strategy=[{use="fsdp"}]')
Plan = Callable[..., str]


@pytest.fixture
def plan(recipe_path: Path, capsys: pytest.CaptureFixture[str]) -> Plan:
    """What `ft plan` prints of the tiny recipe."""

    def plan(*arguments: str) -> str:
        main(["plan", str(recipe_path), *arguments])
        return capsys.readouterr().out

    return plan


def test_several_cards_are_planned_for_as_each_of_them(plan: Plan) -> None:
    told = plan("--gpu", "h100", "--gpus", "4", *SHARDED)
    assert told.startswith("tiny on 4 x H100-80GB, 79.180 GiB each: fits")
    assert "2 x 128 tokens to a micro-batch on each of 4 cards" in told
    assert "  NCCL          688.0 MiB  sourced, more than was measured" in told
    assert "tokens/s on all 4" in told
    assert "75% of the 450 GB/s of their data sheet in one direction: assumed" in told


def test_a_program_gets_the_number_of_cards(plan: Plan) -> None:
    found: dict[str, Any] = json.loads(plan("--gpu", "a10g", "--gpus", "4", "--json"))
    assert found["card"]["count"] == 4
    assert found["card"]["nccl"] == found["ledger"]["NCCL"] == OF_MORE
    assert found["step"]["tokens"] == 4 * 2 * 128
    alone: dict[str, Any] = json.loads(plan("--gpu", "a10g", "--json"))
    assert "NCCL" not in alone["ledger"]
    assert alone["allocated"] == found["allocated"], "replicas"


def test_the_smallest_cards_come_first(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(where_module, "known_cards", lambda: tuple(map(find_card, ("h100", "t4", "l4"))))
    lines = plan("--where").splitlines()
    assert lines[0].startswith("tiny would fit on these, by forecast")
    assert [line.split()[0] for line in lines[2:5]] == ["T4", "L4", "H100-80GB"]
    found = json.loads(plan("--where", "--json"))["where"]
    assert [one["card"]["name"] for one in found] == ["T4", "L4", "H100-80GB"]
    assert all(one["step"]["seconds"] > 0 for one in found)


def test_as_many_cards_as_are_needed_are_looked_at(recipe_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A card is a candidate in the smallest number that may do; replicas would not make it more."""
    sizes = {1: 100, 2: 60, 4: 40, 8: 30}
    registry = open_registry()
    monkeypatch.setattr(Looks, "least", lambda looks, count: sizes[count] * 2**30)
    recipe = read_recipe(recipe_path, registry, [SHARDED[1]])
    found = [(card.count, card.name) for card in candidates(recipe, Looks(recipe, registry, of_recipe))]
    assert (1, "H200") in found
    assert (2, "A100-80GB") in found
    assert (4, "A6000") in found
    assert "A10G" not in {name for _, name in found}, "not even eight of them"
    together: list[int] = [card.count * card.memory for card in candidates(recipe, Looks(recipe, registry, of_recipe))]
    assert together == sorted(together)
    assert counts_of(recipe) == COUNTS
    assert counts_of(read_recipe(recipe_path, registry)) == (1,)


def test_a_card_is_traced_once(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that stands for all is a place, too."""
    seen: list[tuple[str, int]] = []

    def counted(recipe: Recipe, shapes: Shapes, card: Card, twins: Sequence[MemoryTwin]) -> Forecast:
        seen.append((card.name, card.count))
        return forecast(recipe, shapes, card, twins)

    cards = tuple(find_card(name) for name in ("t4", "h100"))
    monkeypatch.setattr(where_module, "known_cards", lambda: cards)
    monkeypatch.setattr(where_module, "forecast", counted)
    assert [one["card"]["name"] for one in json.loads(plan("--where", "--json"))["where"]] == ["T4", "H100-80GB"]
    assert sorted(seen) == [("H100-80GB", 1), ("T4", 1)]


def test_where_nothing_fits_is_said(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    none: tuple[Card, ...] = ()
    monkeypatch.setattr(where_module, "known_cards", lambda: none)
    assert "none: not even 8 of the largest known card would do" in plan("--where")


@pytest.mark.parametrize("more", [("--gpu", "t4"), ("--gpus", "2"), ("--budget", "4GiB"), ("--levers",)])
def test_where_looks_at_every_card(plan: Plan, more: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        plan("--where", *more)
    assert "--where looks at every known card" in capsys.readouterr().err


def test_rows_are_spread_over_as_many_cards_as_can_share_heads(
    recipe_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four heads over one, two and four cards, and not over eight; in pairs they are on any even number of cards."""
    card, registry = find_card("h100"), open_registry()
    monkeypatch.setattr(where_module, "known_cards", lambda: (card,))
    parts = 'memory.strategy=[{use="context-parallel"}]'
    recipe = read_recipe(recipe_path, registry, [parts])
    assert counts_of(recipe) == COUNTS
    small = replace(card, memory=card.context + 2**20)
    monkeypatch.setattr(where_module, "known_cards", lambda: (small,))
    assert candidates(recipe, Looks(recipe, registry, of_recipe)) == [], "eight are passed over"
    pairs = read_recipe(recipe_path, registry, [parts.replace("}", ", cards=2}")])
    assert counts_of(pairs) == COUNTS
    fours = read_recipe(recipe_path, registry, [parts.replace("}", ", cards=4}")])
    assert counts_of(fours) == (1, 4, 8)
