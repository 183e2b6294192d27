"""Fits of a run on several cards: replicas where each card holds the whole run, shards where it does not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout

from fitune.compose.model import built
from fitune.data.cache import cache_directory
from fitune.errors import RunError
from fitune.memory.cards.cards import Card, budget_card, find_card
from fitune.memory.cards.several import OF_MORE, OF_TWO, several
from fitune.memory.fit import tracing
from fitune.memory.fit.choices import choices_for, combinations
from fitune.memory.fit.kept import key_of_fit
from fitune.memory.fit.resolve import fit
from fitune.memory.fit.search import Search
from fitune.memory.forecast import forecast
from fitune.memory.levers import levers
from fitune.plugin.recipe import Recipe
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry
from support.architectures import recipe_of
from support.traces import SharedTraces, shapes

CHANGES = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 16, "num_attention_heads": 8}
"""A model whose weights are most of what a row of 64 tokens takes."""

NAMED = ("chunked-loss", "gradient-checkpointing", "expandable-segments")


@pytest.fixture(scope="module", autouse=True)
def _traces() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracing, "trace", SharedTraces())
        yield


def recipe(directory: Path, *strategies: str) -> Recipe:
    """Which names the strategies that are of no use here, so that they are not tried."""
    recipe_of(directory, "llama", *strategies, length=64, rows=1, changes=CHANGES)
    return read_recipe(directory / "recipe.toml", open_registry())


def names(found: Recipe) -> set[str]:
    return {use.record.name for use in found.strategies}


def test_shards_are_chosen_where_replicas_do_not_fit(tmp_path: Path) -> None:
    registry, asked = open_registry(), recipe(tmp_path, *NAMED)
    roomy = several(budget_card(2**34, find_card("h100")), 4)
    replicas, shards = (forecast(one, shapes(one), roomy) for one in (asked, recipe(tmp_path, *NAMED, "fsdp")))
    assert shards.reserved < 0.8 * replicas.reserved
    tight = replace(roomy, memory=(replicas.needed + shards.reserved) // 2 + shards.margin)
    assert "fsdp" not in names(fit(asked, registry, shapes, roomy).recipe), "which only costs time"
    found = fit(asked, registry, shapes, tight)
    assert "fsdp" in names(found.recipe)
    assert found.forecast.reserved <= tight.usable
    with pytest.raises(RunError):
        fit(asked, registry, shapes, replace(tight, count=1))
    with pytest.raises(RunError, match=f"fits on {re.escape(tight.title)}, "):
        fit(asked, registry, shapes, replace(tight, memory=shards.reserved // 2))


def test_a_single_card_is_offered_no_shards(tmp_path: Path) -> None:
    registry, asked = open_registry(), recipe(tmp_path)
    config = built(asked).config
    offered = [
        {choice.name for choice in choices_for(asked, registry, config, (), processes=number)} for number in (1, 2)
    ]
    assert offered[1] - offered[0] == {"fsdp"}


def test_nothing_is_recorded_beside_shards(tmp_path: Path) -> None:
    """Each alone is offered, and both together are no composition: one would be without effect."""
    asked = recipe(tmp_path)
    choices = choices_for(asked, open_registry(), built(asked).config, (), processes=2)
    at = {choice.name: number for number, choice in enumerate(choices)}
    assert [choice.name for choice in choices if choice.records] == ["cuda-graphs"]
    taken = {(picks[at["cuda-graphs"]] >= 0, picks[at["fsdp"]] >= 0) for picks in combinations(choices, set())}
    assert taken == {(False, False), (True, False), (False, True)}


def test_a_choice_is_kept_for_the_number_of_cards_that_it_was_made_for(tmp_path: Path) -> None:
    registry, asked = open_registry(), recipe(tmp_path)
    config, given = built(asked).config, shapes(asked)
    keys = [key_of_fit(asked, registry, config, given, several(find_card("h100"), number)) for number in (1, 2, 4)]
    assert len(set(keys)) == 3


@pytest.mark.parametrize(("number", "nccl"), [(1, 0), (2, OF_TWO), (4, OF_MORE), (8, OF_MORE)])
def test_nccl_takes_its_part_of_each_card(number: int, nccl: int) -> None:
    card = find_card("h100")
    found = several(card, number)
    assert (found.count, found.nccl, found.usable) == (number, nccl, card.usable - nccl)
    assert found.title == (card.name if number == 1 else f"{number} x {card.name}")
    assert several(found, 1) == card


def test_a_budget_is_taken_as_it_was_given() -> None:
    card: Card = budget_card(2**30)
    assert several(card, 4).usable == 2**30


@pytest.mark.parametrize("number", [0, -1, 1025])
def test_a_number_of_cards_that_cannot_be_is_refused(number: int) -> None:
    with pytest.raises(RunError):
        several(find_card("h100"), number)


def test_shards_are_a_lever_of_several_cards_alone(tmp_path: Path) -> None:
    registry, asked = open_registry(), recipe(tmp_path)
    config = built(asked).config
    named = [{lever.name for lever in levers(asked, registry, config, number)} for number in (1, 2)]
    assert named[1] - named[0] == {"fsdp"}


def test_one_of_several_processes_searches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait, and take what it has kept."""
    registry, asked, searches = open_registry(), recipe(tmp_path, *NAMED), []
    card = several(budget_card(2**34, find_card("h100")), 2)
    run = Search.run

    def watched(self: Search) -> Any:
        (file,) = (cache_directory() / "fits").glob("*.lock")
        with pytest.raises(Timeout):
            FileLock(file).acquire(timeout=0)
        searches.append(file)
        return run(self)

    monkeypatch.setattr(Search, "run", watched)
    first, second = (fit(asked, registry, shapes, card, again=False) for _ in range(2))
    assert len(searches) == 1
    assert names(second.recipe) == names(first.recipe)
    assert not list((cache_directory() / "fits").glob("*.lock"))
