"""`[memory] fit` in a run: what is chosen is what runs and what is written; and what is tighter in its midst."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from fitune import MemoryForecast, Recipe, RunError
from fitune.cli.console import RunConsole
from fitune.compose import parts
from fitune.data.run_data import gather
from fitune.memory.cards.cards import find_card
from fitune.memory.fit import resolve
from fitune.memory.fit.refit import TRIES, Composition, refitter_of
from fitune.plugin.recipe import Use
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry, write_recipe
from support.tiny import losses, train

GIB = 2**30
MARGIN = GIB // 10


class Resolver:
    """Stands for the search: gives these strategies, one list after the other, and keeps what it was asked."""

    def __init__(self, *names: Sequence[str], reserved: int = 10 * GIB) -> None:
        self.names, self.reserved = list(names), reserved
        self.asked: list[tuple[Recipe, int | None]] = []
        self.shapes: list[Any] = []

    def __call__(
        self, recipe: Recipe, registry: Any, shapes: Callable[[Recipe], Any], *, budget: Any = None, start: Any = None
    ) -> Any:
        """What the search gives."""
        self.asked.append((recipe, budget))
        self.shapes.append(shapes(recipe))
        names = self.names.pop(0) if self.names else None
        if names is None:
            raise RunError("nothing fits")
        memory = dataclasses.replace(recipe.memory, fit=False, allow=())
        forecast = SimpleNamespace(
            card=find_card("a10g"),
            allocated=self.reserved,
            reserved=self.reserved,
            needed=self.reserved,
            margin=MARGIN,
            passes=True,
            cached=0,
            outside=(("context", 0),),
            ledger=SimpleNamespace(entries=()),
        )
        chosen = (*recipe.strategies, *(_use(registry, name) for name in names))
        made = dataclasses.replace(recipe, strategies=chosen, memory=memory)
        return SimpleNamespace(recipe=made, forecast=forecast, notes=("a note",))


def _use(registry: Any, name: str) -> Use[Any]:
    (record,) = (p.record for p in registry.provided if p.record.name == name)
    return Use(record=record, options=record.options())


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Resolver]:
    """Puts one in place of the search."""

    def put(*names: Sequence[str], **settings: Any) -> Resolver:
        made = Resolver(*names, **settings)
        monkeypatch.setattr(resolve, "resolve", made)
        return made

    return put


def _recipe(directory: Path, **memory: object) -> Path:
    return write_recipe(directory, {"memory": memory})


def test_a_run_takes_what_was_chosen(tmp_path: Path, resolver: Callable[..., Resolver]) -> None:
    search = resolver(["chunked-loss", "gradient-checkpointing"])
    path = _recipe(tmp_path / "recipe", fit="a10g", strategy=[{"use": "accumulation", "steps": 2}])
    console = io.StringIO()
    made = train(path, tmp_path / "run", plugins=[RunConsole(Console(file=console, width=200))])
    names = ["accumulation", "chunked-loss", "gradient-checkpointing"]
    assert [use.record.name for use in made.recipe.strategies] == names
    written = read_recipe(tmp_path / "run" / "recipe.toml", open_registry())
    assert [use.record.name for use in written.strategies] == names
    assert written.memory.fit is False
    assert made.forecast is not None
    assert (made.forecast.card, made.forecast.reserved, made.forecast.margin) == ("A10G", 10 * GIB, MARGIN)
    said = console.getvalue()
    assert "         chosen for A10G: accumulation (steps 2), chunked-loss, gradient-checkpointing" in said
    assert "10.00 GiB reserved, 0.10 GiB margin" in said
    assert "a note" in said
    # The search is for the longest rows of the data, and asked once.
    ((_, budget),) = search.asked
    assert budget is None
    (shapes,) = search.shapes
    assert shapes.source.startswith("the data: their longest rows")
    assert len(shapes.training) == 2
    train(tmp_path / "run" / "recipe.toml", tmp_path / "again")
    assert losses(tmp_path / "again") == losses(tmp_path / "run")


def test_nothing_is_loaded_where_nothing_fits(
    tmp_path: Path, resolver: Callable[..., Resolver], monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver()
    monkeypatch.setattr(parts, "make_model", lambda *_: pytest.fail("a weight is read"))
    with pytest.raises(RunError, match="nothing fits"):
        train(_recipe(tmp_path / "recipe", fit="a10g"), tmp_path / "run")


def test_without_fit_nothing_is_searched(tmp_path: Path, resolver: Callable[..., Resolver]) -> None:
    search = resolver()
    assert train(_recipe(tmp_path / "recipe"), tmp_path / "run").fitted == ()
    assert search.asked == []


def _forecast(reserved: int) -> MemoryForecast:
    return MemoryForecast(card="A10G", reserved=reserved, needed=reserved, margin=MARGIN)


def _refitted(path: Path, used: Sequence[Composition], room: int) -> Composition:
    registry = open_registry()
    asked = read_recipe(path, registry)
    return refitter_of(registry)(asked, used, gather(asked), room)


def test_a_recipe_without_fit_keeps_its_own_and_adds_what_is_exact(
    tmp_path: Path, resolver: Callable[..., Resolver]
) -> None:
    search = resolver(["gradient-checkpointing"])
    path = _recipe(tmp_path / "recipe", strategy=[{"use": "adamw-8bit"}])
    asked = read_recipe(path, open_registry())
    found = _refitted(path, [Composition(recipe=asked)], 20 * GIB)
    ((searched, budget),) = search.asked
    assert (searched.memory.fit, searched.memory.allow, budget) == (True, (), 20 * GIB)
    assert [use.record.name for use in searched.strategies] == ["adamw-8bit"]
    assert [use.record.name for use in found.recipe.strategies] == ["adamw-8bit", "gradient-checkpointing"]


def test_what_changes_numbers_stays_and_none_is_added(tmp_path: Path, resolver: Callable[..., Resolver]) -> None:
    """What was allowed and not chosen would change the run in its midst."""
    search = resolver(["gradient-checkpointing"])
    allowed = ["nf4", "adamw-8bit", "host-embeddings"]
    path = _recipe(tmp_path / "recipe", fit="a10g", allow=allowed, strategy=[{"use": "chunked-loss"}])
    registry = open_registry()
    asked = read_recipe(path, registry)
    chosen = (*asked.strategies, _use(registry, "nf4"), _use(registry, "expandable-segments"))
    first = Composition(recipe=dataclasses.replace(asked, strategies=chosen))
    found = _refitted(path, [first], 20 * GIB)
    ((searched, _),) = search.asked
    assert [use.record.name for use in searched.strategies] == ["chunked-loss", "nf4"]
    assert searched.memory.allow == ("host-embeddings",)
    assert [use.record.name for use in found.recipe.strategies] == ["chunked-loss", "nf4", "gradient-checkpointing"]


@pytest.mark.parametrize(
    ("reserved", "room", "budget"),
    [
        (10 * GIB, 80 * GIB, 10 * GIB + MARGIN - GIB // 2),  # it failed, whatever is free now: 512 MiB less
        (40 * GIB, 80 * GIB, (40 * GIB + MARGIN) * 0.97),
        (10 * GIB, 5 * GIB, 5 * GIB),
        (GIB, 80 * GIB, (GIB + MARGIN) * 0.9),
    ],
)
def test_the_budget_is_below_what_failed(
    tmp_path: Path, resolver: Callable[..., Resolver], reserved: int, room: int, budget: float
) -> None:
    search = resolver(["gradient-checkpointing"])
    path = _recipe(tmp_path / "recipe")
    asked = read_recipe(path, open_registry())
    _refitted(path, [Composition(recipe=asked, forecast=_forecast(reserved))], room)
    assert search.asked[0][1] == pytest.approx(budget, abs=2)


def test_what_was_used_is_not_used_again(tmp_path: Path, resolver: Callable[..., Resolver]) -> None:
    """Where the first was not forecast, the search's own forecast says what must be less."""
    search = resolver([], ["gradient-checkpointing"])
    path = _recipe(tmp_path / "recipe")
    asked = read_recipe(path, open_registry())
    found = _refitted(path, [Composition(recipe=asked)], 80 * GIB)
    assert len(found.recipe.strategies) == 1
    budgets = [cast(int, budget) for _, budget in search.asked]
    assert budgets == [80 * GIB, 10 * GIB + MARGIN - GIB // 2]
    search = resolver(*[[]] * (TRIES + 1))
    with pytest.raises(RunError, match="no composition of memory strategies that changes no number takes less than"):
        _refitted(path, [Composition(recipe=asked)], 80 * GIB)
    assert len(search.asked) == TRIES


def test_without_a_gpu_to_fit_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`fit = true` on another machine: the recipe's own strategies, and it is said."""
    monkeypatch.setattr(resolve, "local_card", lambda: None)
    path = _recipe(tmp_path / "recipe", fit=True, strategy=[{"use": "chunked-loss"}])
    made = train(path, tmp_path / "run")
    assert [use.record.name for use in made.recipe.strategies] == ["chunked-loss"]
    assert made.fitted == ("no GPU here to fit to: the recipe's own strategies, and no others",)
    assert read_recipe(tmp_path / "run" / "recipe.toml", open_registry()).memory.fit is False
    text = path.read_text(encoding="utf-8").replace("micro_batch = 2\n", "batch_tokens = 512\n")
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RunError, match=r"batch_tokens is cut into micro-batches for a card.*no GPU here"):
        train(path, tmp_path / "other")
