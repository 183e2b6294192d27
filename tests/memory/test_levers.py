"""Levers: which there are for a recipe, and that each is traced, not claimed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from fitune import Fit, Lever, MemoryStrategy, NoOptions, PluginError, Recipe, hookimpl
from fitune.compose.model import built
from fitune.memory.cards.cards import find_card
from fitune.memory.changes import strategy_options, with_strategy, without_strategy
from fitune.memory.forecast import forecast
from fitune.memory.levers import Measured, Plant, Refused, levers, measure
from fitune.memory.report import recipe_lines
from fitune.memory.shapes import of_recipe
from fitune.plugin.strategy import Strategy
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry

A10G = find_card("a10g")


class Offers:
    """A plugin with levers and a strategy of its own."""

    def __init__(self, *offered: Lever) -> None:
        self.offered = offered

    @hookimpl
    def ft_levers(self, recipe: Recipe) -> Iterable[Lever]:
        """Offer them."""
        return self.offered

    @hookimpl
    def ft_memory_strategies(self) -> Iterable[MemoryStrategy[NoOptions]]:
        """Offer it."""
        yield MemoryStrategy(name="mine", summary="Mine", options=NoOptions, make=lambda options: Strategy())


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepOptions:
    """Options of a third party's strategy."""

    layers: int | None = None
    """The first n."""
    keep: str = "nothing"
    """What is kept."""
    width: int = 64
    """Tokens."""


class Deep:
    """A third party's plugin, whose record says what there is to change."""

    @hookimpl
    def ft_memory_strategies(self) -> Iterable[MemoryStrategy[DeepOptions]]:
        """Offer it."""
        yield MemoryStrategy(
            name="deep",
            summary="Deep",
            options=DeepOptions,
            make=lambda options: Strategy(),
            exact=True,
            fit=Fit(
                settings=({}, {"keep": "some", "width": 8}),
                compared=({"keep": "most"},),
                layers="layers",
                halves=("width",),
                words={"width": "strips of"},
            ),
        )


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (None, {"deep": {}, "deep, the first 1 of 2 layers": {"layers": 1}}),
        (
            '{use="deep", keep="most"}',
            {
                "deep, keep nothing": {"keep": "nothing", "width": 64},
                "deep, keep some": {"keep": "some", "width": 64},
                "deep, strips of 64 to 32 tokens": {"keep": "most", "width": 32},
                "without deep": None,
            },
        ),
        (
            '{use="deep", layers=1, width=1}',
            {
                "deep, all 2 layers": {"keep": "nothing", "width": 1},
                "deep, keep some": {"layers": 1, "keep": "some", "width": 1},
                "deep, keep most": {"layers": 1, "keep": "most", "width": 1},
                "without deep": None,
            },
        ),
    ],
)
def test_levers_follow_from_what_a_record_says(
    recipe_path: Path, table: str | None, expected: dict[str, dict[str, object] | None]
) -> None:
    """Of a strategy that nobody knows: its layers, settings and numbers of tokens; a setting that is there is none."""
    registry = open_registry(Deep())
    recipe = read_recipe(recipe_path, registry, [f"memory.strategy=[{table or ''}]"])
    offered = levers(recipe, registry, built(recipe).config)
    mine = {lever.name: dict(lever.changes)["memory.strategy"] for lever in offered if "deep" in lever.name}
    tables = {name: [] if one is None else [{"use": "deep", **one}] for name, one in expected.items()}
    assert mine == tables
    assert all(lever.exact for lever in offered if lever.name in mine)


def plant(recipe_path: Path, *overrides: str, plugins: Sequence[object] = ()) -> Plant:
    """The tiny recipe, forecast."""
    registry = open_registry(*plugins)
    recipe = read_recipe(recipe_path, registry, overrides)
    base = forecast(recipe, of_recipe(recipe), A10G)
    return Plant(recipe=recipe, registry=registry, overrides=overrides, shape=of_recipe, base=base)


def found(plant: Plant) -> dict[str, Measured | Refused]:
    """Every lever by name, traced."""
    offered = levers(plant.recipe, plant.registry, plant.base.trace.config)
    return {one.lever.name: one for one in measure(plant, offered)}


def test_rank_and_alpha_save_what_they_save(recipe_path: Path) -> None:
    at = plant(recipe_path, "memory.strategy=[]", "adapter.r=8", "adapter.alpha=16", "model.dtype=bfloat16")
    all_found = found(at)
    rank, alpha = all_found["LoRA r 8 to 4"], all_found["LoRA alpha 16 to 8"]
    assert isinstance(rank, Measured)
    assert isinstance(alpha, Measured)
    parameters = at.base.trace.trainable
    assert rank.forecast.trace.trainable == parameters // 2
    # Weight 2, master 4, its gradient 4, AdamW 8 bytes a parameter: 16 KiB here, and as much again for the rounding of
    # small tensors to 512 bytes, and for what passes through the adapters.
    assert parameters // 2 * 18 <= rank.saved_allocated + 2**12 <= 2**15
    assert (alpha.saved, alpha.saved_allocated, alpha.compute) == (0, 0, 0)


def test_checkpointing_costs_a_third_more_and_can_be_given_back(recipe_path: Path) -> None:
    offered = found(plant(recipe_path, "memory.strategy=[]"))
    every, half = offered["gradient-checkpointing"], offered["gradient-checkpointing, the first 1 of 2 layers"]
    assert isinstance(every, Measured)
    assert isinstance(half, Measured)
    assert 0 < half.saved_allocated <= every.saved_allocated  # of two layers, one is computed again at the peak
    assert 0 < half.compute < every.compute < 0.5
    back = found(plant(recipe_path, 'memory.strategy=[{use="gradient-checkpointing"}]'))
    without = back["without gradient-checkpointing"]
    assert isinstance(without, Measured)
    assert without.saved_allocated == -every.saved_allocated
    assert without.compute == pytest.approx(1 / (1 + every.compute) - 1)


def test_a_smaller_micro_batch_keeps_the_rows_of_a_step(recipe_path: Path) -> None:
    strategies = 'memory.strategy=[{use="accumulation",steps=3}]'
    one = found(plant(recipe_path, strategies, "train.micro_batch=4"))["micro_batch 4 to 2, accumulated twice as often"]
    assert isinstance(one, Measured)
    assert one.recipe.train.micro_batch == 2
    assert strategy_options(one.recipe, "accumulation") == {"use": "accumulation", "steps": 6}
    assert one.saved_allocated > 0
    assert one.compute == pytest.approx(0)


def test_a_strategy_of_a_plugin_is_tried_by_itself(recipe_path: Path) -> None:
    one = found(plant(recipe_path, "memory.strategy=[]", plugins=[Offers()]))["mine"]
    assert isinstance(one, Measured)
    assert one.saved == 0
    assert one.lever.exact is None
    used = found(plant(recipe_path, 'memory.strategy=[{use="mine"}]', plugins=[Offers()]))
    assert "mine" not in used


def test_a_lever_that_the_recipe_cannot_take_says_why(recipe_path: Path) -> None:
    bad = Lever(name="bad", changes=(("train.length", 0),))
    one = found(plant(recipe_path, "memory.strategy=[]", plugins=[Offers(bad)]))["bad"]
    assert isinstance(one, Refused)
    assert '"length" is 0' in one.reason


def test_what_is_no_lever_is_an_error_that_names_the_plugin(recipe_path: Path) -> None:
    wrong = Offers("not a lever")  # type: ignore[arg-type]
    with pytest.raises(PluginError, match=r"ft_levers gave 'not a lever', not a Lever"):
        found(plant(recipe_path, "memory.strategy=[]", plugins=[wrong]))


def test_equal_levers_count_once_the_plugins_words_first(recipe_path: Path) -> None:
    at = plant(recipe_path, "memory.strategy=[]")
    own = Lever(name="my words", changes=(with_strategy(at.recipe, "chunked-loss"),), exact=True, remark="mine")
    again = plant(recipe_path, "memory.strategy=[]", plugins=[Offers(own)])
    names = [lever.name for lever in levers(again.recipe, again.registry, again.base.trace.config)]
    assert "my words" in names
    assert "chunked-loss" not in names


def test_overrides_are_those_that_set_takes(recipe_path: Path) -> None:
    at = plant(recipe_path, 'memory.strategy=[{use="accumulation",steps=2},{use="chunked-loss"}]')
    lever = Lever(name="x", changes=(with_strategy(at.recipe, "chunked-loss", tokens=7), ("train.length", 16)))
    changed = read_recipe(recipe_path, at.registry, lever.overrides)
    assert strategy_options(changed, "chunked-loss") == {"use": "chunked-loss", "tokens": 7}
    assert strategy_options(changed, "accumulation") == {"use": "accumulation", "steps": 2}
    assert changed.train.length == 16
    assert recipe_lines(at.recipe, lever) == ('[[memory.strategy]] use = "chunked-loss", tokens = 7; train.length = 16')
    gone = Lever(name="y", changes=(without_strategy(at.recipe, "accumulation"),))
    assert recipe_lines(at.recipe, gone) == "no accumulation"
    assert strategy_options(read_recipe(recipe_path, at.registry, gone.overrides), "accumulation") is None
