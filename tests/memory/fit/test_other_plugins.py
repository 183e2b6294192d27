"""A fit treats a third party's strategies as those that come with fitune: its search knows none of them by its name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fitune import MemoryStrategy, hookimpl
from fitune.compose.model import built, planned
from fitune.memory.cards.cards import find_card
from fitune.memory.fit.choices import choices_for, composed
from fitune.memory.fit.resolve import resolve, rows_of
from fitune.memory.fit.result import Considered
from fitune.memory.fit.space import Space
from fitune.memory.forecast import margin_of
from fitune.plugin.recipe import Recipe
from fitune.plugin.registry import Registry
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry
from support.architectures import recipe_of
from support.traces import shapes

LAYERS = 8
CHANGES = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": LAYERS, "num_attention_heads": 8}
"""A model whose linear layers weigh 49 MiB, and 14 MiB in four bits."""

OTHER = {"nf4": "four-bit", "expandable-segments": "growing", "accumulation": "several"}
"""What a third party calls its copies."""

KEPT = ("nf4", "four-bit", "expandable-segments")


class Copies:
    """A third party's plugin: copies of strategies that come with fitune, under other names."""

    @hookimpl
    def ft_memory_strategies(self) -> Iterator[MemoryStrategy[Any]]:
        """Offer them."""
        registry = open_registry()
        yield from (replace(registry.find(MemoryStrategy, name), name=other) for name, other in OTHER.items())


def with_copies(tmp_path: Path, *overrides: str, strategies: tuple[str, ...] = ()) -> tuple[Recipe, Registry]:
    registry = open_registry(Copies())
    recipe_of(tmp_path, "llama", *strategies, length=128, rows=1, changes=CHANGES)
    return read_recipe(tmp_path / "recipe.toml", registry, overrides), registry


def limits(tmp_path: Path, *overrides: str) -> dict[tuple[str, ...], float]:
    """What is left free of an A10G during a search, by the strategies that are taken beside free ones."""
    asked, registry = with_copies(tmp_path, *overrides)
    choices = choices_for(asked, registry, built(asked).config, asked.memory.allow)
    space = Space(
        choices=choices,
        named=frozenset(use.record.name for use in asked.strategies),
        rows=rows_of(asked),
        layers=LAYERS,
        usable=A10G,
        plan=planned(asked, gpu=True)[1],
    )
    named = ("nf4", "four-bit", "growing", "expandable-segments")
    sets = [set[str](), *({name} for name in named), {"nf4", "expandable-segments"}, {"four-bit", "growing"}]
    return {
        tuple(sorted(taken)): A10G - space.limit(tuple(0 if c.name in taken else -1 for c in choices)) for taken in sets
    }


A10G = find_card("a10g").usable

FIXED, GROWING, QUANTIZED = (
    margin_of(A10G, expandable=expandable, quantized=quantized)
    for expandable, quantized in ((False, False), (True, False), (True, True))
)


def test_a_third_partys_strategies_have_the_margin_of_ours(tmp_path: Path) -> None:
    found = limits(tmp_path, 'memory.fit="a10g"', 'memory.allow=["nf4", "four-bit"]')
    assert FIXED > QUANTIZED > GROWING
    assert found == {
        (): FIXED,
        ("nf4",): FIXED,
        ("four-bit",): FIXED,
        ("growing",): GROWING,
        ("expandable-segments",): GROWING,
        ("expandable-segments", "nf4"): QUANTIZED,
        ("four-bit", "growing"): QUANTIZED,
    }


@pytest.mark.parametrize(
    ("named", "margin"),
    [
        ('{use="growing"}', GROWING),
        ('{use="growing"}, {use="four-bit"}', QUANTIZED),
        ('{use="growing", enabled=false}', FIXED),
    ],
)
def test_the_margin_follows_from_what_the_named_strategies_decide(tmp_path: Path, named: str, margin: int) -> None:
    """Not from their names: one that is switched off changes nothing."""
    found = limits(tmp_path, 'memory.fit="a10g"', f"memory.strategy=[{named}]")
    assert found[()] == margin


def of_the_copy(one: Considered) -> Considered:
    """With the copy in place of `nf4`."""
    tables = tuple({**table, "use": OTHER["nf4"]} if table["use"] == "nf4" else table for table in one.tables)
    return replace(one, tables=tables)


def test_a_third_partys_quantiser_is_chosen_where_ours_is(tmp_path: Path) -> None:
    """Of a budget that leaves no other choice; all that was looked at is the same but for the name. Without strategies
    that do not matter here: the search is quick then.
    """
    found = []
    for name in ("nf4", "four-bit"):
        asked, registry = with_copies(tmp_path, 'memory.fit="0.14GiB"', f'memory.allow=["{name}"]')
        registry.provided = [p for p in registry.provided if p.kind != "memory strategy" or p.record.name in KEPT]
        chosen = resolve(asked, registry, shapes)
        assert chosen is not None
        assert name in {use.record.name for use in chosen.recipe.strategies}
        found.append(chosen)
    ours, theirs = found
    assert of_the_copy(ours.chosen) == theirs.chosen
    assert [of_the_copy(one) for one in ours.others] == list(theirs.others)
    assert (ours.forecast.reserved, ours.forecast.margin) == (theirs.forecast.reserved, theirs.forecast.margin)


def test_a_third_partys_strategy_sets_the_micro_batches_to_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is the only one: of several the first plugin's is taken."""
    asked, registry = with_copies(tmp_path, "memory.strategy=[]")
    assert [use.table() for use in composed(asked, registry, (), 1, 4).strategies] == [
        {"use": "accumulation", "steps": 4}
    ]
    monkeypatch.setattr(registry, "provided", [p for p in registry.provided if p.record.name != "accumulation"])
    (use,) = composed(asked, registry, (), 1, 4).strategies
    assert use.table() == {"use": "several", "steps": 4}
    assert composed(asked, registry, (), 1, 1).strategies == ()
