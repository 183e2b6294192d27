"""`[memory] fit` in a run: what it chooses before anything is loaded, and what is tighter once memory has run out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from fitune.data.prepare import Prepared
from fitune.data.run_data import RunData
from fitune.errors import FtError, RunError
from fitune.memory.fit.choices import composed
from fitune.memory.fit.kept import AS_BEFORE, keep_told, kept_told
from fitune.memory.shapes import shapes_of_data
from fitune.memory.strategies import accumulating
from fitune.plugin.dataflow import DataContext
from fitune.plugin.events import MemoryForecast
from fitune.plugin.options import toml_text
from fitune.plugin.recipe import Recipe
from fitune.plugin.units import MIB, gib

if TYPE_CHECKING:
    from fitune.memory.cards.cards import Card
    from fitune.memory.fit.result import Fitted
    from fitune.plugin.registry import Registry


TRIES = 4
"""Searches for a composition that was not used yet, each with less memory than the one before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """A recipe without `fit`: its memory strategies are those that it names."""

    recipe: Recipe
    forecast: MemoryForecast | None = None
    """Where one was made with the choice."""
    lines: tuple[str, ...] = ()
    """What was chosen and what for."""

    @property
    def tables(self) -> tuple[str, ...]:
        """Its memory strategies, each as a table of TOML."""
        return tuple(toml_text(use.table()) for use in self.recipe.strategies)

    def equals(self, other: Composition) -> bool:
        """Whether both take the same memory."""
        mine, others = self.recipe.train.micro_batch, other.recipe.train.micro_batch
        return self.tables == other.tables and mine == others


class Refitter(Protocol):
    """Finds what to go on with after memory has run out."""

    def __call__(self, asked: Recipe, used: Sequence[Composition], run_data: RunData, room: int) -> Composition:
        """A composition that takes less than the last of those that were used, in `room` bytes of the allocator.

        `asked` is the recipe as the user wrote it. Raises `RunError` if there is none.
        """


class Foreseen:
    """A forecaster whose forecast is there already: it was made for the choice."""

    def __init__(self, forecast: MemoryForecast) -> None:
        self._forecast = forecast

    def start(
        self, recipe: Recipe, context: DataContext, accumulation: int, data: Prepared, held_out: Prepared | None
    ) -> None:
        """Nothing is left to do."""

    def result(self) -> MemoryForecast:
        """The forecast."""
        return self._forecast


def fitted(recipe: Recipe, registry: Registry, run_data: RunData) -> Composition:
    """What `[memory] fit` chooses for these data; the recipe's own strategies where there is no GPU to fit to.

    Raises `RunError` if nothing fits.
    """
    from fitune.memory.fit.resolve import card_of_fit, resolve, start_of_fit

    shapes, card = partial(shapes_of_data, data=run_data), card_of_fit(recipe)
    if card is not None:
        start = start_of_fit(recipe, registry, shapes, card)
        if (known := _known(start.key, recipe, registry, card)) is not None:
            return known
        if (found := resolve(recipe, registry, shapes, start=start)) is not None:
            composition = _composition(found)
            if composition.forecast is not None:
                keep_told(start.key, composition.forecast)
            return composition
    if recipe.train.batch_tokens is not None:
        record = accumulating(registry)
        strategy = f' and the strategy "{record.name}"' if record else ""
        raise RunError(
            "[train] batch_tokens is cut into micro-batches for a card, and [memory] fit = true finds no GPU here. "
            f'Name a card, e.g. fit = "a10g", or give micro_batch{strategy}'
        )
    memory = dataclasses.replace(recipe.memory, fit=False, fast=False, allow=())
    own = dataclasses.replace(recipe, memory=memory)
    return Composition(recipe=own, lines=("no GPU here to fit to: the recipe's own strategies, and no others",))


def refitter_of(registry: Registry) -> Refitter:
    """The search that `[memory] fit` makes, with less memory."""

    def refit(asked: Recipe, used: Sequence[Composition], run_data: RunData, room: int) -> Composition:
        from fitune.memory.fit.resolve import resolve

        recipe, budget = _exactly(asked, used, registry), _below(used[-1], room)
        for _ in range(TRIES):
            found = resolve(recipe, registry, partial(shapes_of_data, data=run_data), budget=budget)
            if found is None:
                break
            composition = _composition(found)
            if not any(composition.equals(one) for one in used):
                return composition
            budget = _below(composition, budget)
        raise RunError(f"no composition of memory strategies that changes no number takes less than {gib(budget)}")

    return refit


def _exactly(asked: Recipe, used: Sequence[Composition], registry: Registry) -> Recipe:
    """The recipe to search from in the midst of a run: what was chosen for it and is not exact stays, and nothing else
    that is not exact is added. A recipe without `fit` keeps its own strategies.
    """
    if not asked.memory.fit:
        return dataclasses.replace(asked, memory=dataclasses.replace(asked.memory, fit=True, fast=True, allow=()))
    named = {use.record.name for use in asked.strategies}
    chosen = [use for use in used[-1].recipe.strategies if use.record.name not in named]
    kept = tuple(use for use in chosen if use.record.exact is not True)
    exact = {p.record.name for p in registry.provided if getattr(p.record, "exact", None) is True}
    memory = dataclasses.replace(asked.memory, fit=True, allow=tuple(a for a in asked.memory.allow if a in exact))
    return dataclasses.replace(asked, strategies=(*asked.strategies, *kept), memory=memory)


def _below(failed: Composition, room: int) -> int:
    """Bytes of a budget within this room in which the composition that ran out cannot be chosen again."""
    forecast = failed.forecast
    if forecast is None or forecast.error is not None:
        return room
    most = forecast.reserved + forecast.margin
    return min(room, most - _step(most))


def _step(budget: int) -> int:
    """What a budget is lowered by: 512 MiB or 3 %, whichever is more; of a small one a tenth."""
    return int(max(0.03 * budget, min(512 * MIB, 0.1 * budget)))


def _known(key: str, recipe: Recipe, registry: Registry, card: Card) -> Composition | None:
    """What an earlier start of the same run has chosen; None where none has, or it cannot be composed any more."""
    if (entry := kept_told(key)) is None:
        return None
    chosen, told = entry
    accumulation = None if recipe.train.batch_tokens is None else chosen.accumulation
    try:
        made = composed(recipe, registry, chosen.tables, chosen.micro_batch, accumulation)
    except FtError:
        return None
    return Composition(recipe=made, forecast=told, lines=_lines(made, told, card, (AS_BEFORE,)))


def _composition(found: Fitted) -> Composition:
    forecast = found.forecast
    told = MemoryForecast(
        card=forecast.card.title,
        allocated=forecast.allocated,
        reserved=forecast.reserved,
        needed=forecast.needed,
        margin=forecast.margin,
        context=forecast.card.outside,
        fits=forecast.passes,
        ledger=(
            *((entry.kind, entry.bytes) for entry in forecast.ledger.entries),
            *forecast.outside,
            ("fragmentation and cache", forecast.cached),
        ),
    )
    return Composition(recipe=found.recipe, forecast=told, lines=_lines(found.recipe, told, forecast.card, found.notes))


def _lines(recipe: Recipe, told: MemoryForecast, card: Card, notes: Sequence[str]) -> tuple[str, ...]:
    names = ", ".join(_named(use.table()) for use in recipe.strategies) or "no strategy"
    spare = card.usable - told.margin - told.reserved
    return (
        f"chosen for {told.card}: {names}",
        f"forecast {gib(told.reserved)} reserved, {gib(told.margin)} margin, {gib(spare)} to spare",
        *notes,
    )


def _named(table: dict[str, object]) -> str:
    options = ", ".join(f"{key} {toml_text(value)}" for key, value in table.items() if key != "use")
    return f"{table['use']} ({options})" if options else str(table["use"])
