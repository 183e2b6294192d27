"""Traces of compositions, each made once: of short models to estimate from, of the whole one to be sure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from fitune.errors import FtError
from fitune.memory.allocator.replay import replay
from fitune.memory.cards.cards import Card
from fitune.memory.cards.pace import Pace
from fitune.memory.fit.choices import Table, composed
from fitune.memory.fit.estimate import Seen
from fitune.memory.forecast import Forecast, on_card
from fitune.memory.ledger import Ledger, make_ledger
from fitune.memory.shapes import Shapes
from fitune.memory.trace.run import Trace, trace
from fitune.plugin.recipe import Recipe
from fitune.plugin.records import MemoryTwin
from fitune.plugin.registry import Registry

Shape = Callable[[Recipe], Shapes]
"""The largest batches of a recipe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A composition to be traced."""

    tables: tuple[Table, ...]
    """Of the strategies that were chosen."""
    micro_batch: int
    accumulation: int | None
    """Micro-batches to a step, where that is chosen too; None for what the recipe says."""

    @property
    def key(self) -> str:
        """Equal for equal ones."""
        return repr((self.tables, self.micro_batch, self.accumulation))


class Tracing(Protocol):
    """Looks at compositions; a test may have another way."""

    def short(self, trial: Trial, layers: int) -> Seen | None:
        """With a model of so many layers, 0 for all of its own; None where it cannot be composed."""

    def whole(self, trial: Trial) -> tuple[Recipe, Forecast, Seen] | None:
        """With the model as it is."""


class Traces:
    """Traces a recipe's own steps."""

    def __init__(
        self, recipe: Recipe, registry: Registry, shape: Shape, card: Card, twins: Sequence[MemoryTwin] = ()
    ) -> None:
        self.reasons: list[str] = []
        """Why compositions could not be made."""
        self.own: FtError | None = None
        """Why the recipe as it is, with nothing chosen, could not be."""
        self._recipe, self._registry, self._shape, self.card, self._twins = recipe, registry, shape, card, twins
        self._pace = Pace(card)
        self._shapes: dict[tuple[int, int], Shapes] = {}
        self._short: dict[tuple[str, int], Seen | None] = {}
        self._whole: dict[str, tuple[Recipe, Forecast, Seen] | None] = {}

    @property
    def processes(self) -> int:
        """Of the run, each on a card of its own."""
        return self.card.count

    def short(self, trial: Trial, layers: int) -> Seen | None:
        """With a model of so many layers, 0 for all of its own; None where it cannot be composed."""
        key = trial.key, layers
        if key not in self._short:
            try:
                _, traced, _ = self._traced(trial, layers or None)
                log = traced.log
                taken = replay(log.sized(), expandable=traced.plan.expandable, apart=log.apart, streams=log.streams)
                sizes = taken.peak_allocated, taken.peak_reserved
                self._short[key] = self._seen(traced, sizes, make_ledger(log))
            except FtError as error:
                self._refuse(trial, error)
                self._short[key] = None
        return self._short[key]

    def whole(self, trial: Trial) -> tuple[Recipe, Forecast, Seen] | None:
        """With the model as it is; None where it cannot be composed."""
        if trial.key not in self._whole:
            try:
                recipe, traced, shapes = self._traced(trial, None)
                found = on_card(traced, shapes, self.card)
                sizes = found.allocated, found.reserved
                self._whole[trial.key] = recipe, found, self._seen(traced, sizes, found.ledger)
            except FtError as error:
                self._refuse(trial, error)
                self._whole[trial.key] = None
        return self._whole[trial.key]

    def _refuse(self, trial: Trial, error: FtError) -> None:
        if not trial.tables:
            self.own = error
        if error.lines[0] not in self.reasons:
            self.reasons.append(error.lines[0])

    def _traced(self, trial: Trial, layers: int | None) -> tuple[Recipe, Trace, Shapes]:
        recipe = composed(self._recipe, self._registry, trial.tables, trial.micro_batch, trial.accumulation)
        key = trial.micro_batch, trial.accumulation or 0
        if key not in self._shapes:
            self._shapes[key] = self._shape(recipe)
        shapes = self._shapes[key]
        return recipe, trace(recipe, shapes, self.card, self._twins, layers=layers), shapes

    def _seen(self, traced: Trace, sizes: tuple[int, int], ledger: Ledger) -> Seen:
        load = next((peak.bytes for peak in ledger.phases if peak.phase == "load"), 0)
        accumulation = traced.plan.accumulation
        took = traced.work.seconds(self._pace, traced=traced.micro_batches, accumulation=accumulation)
        return Seen(
            allocated=sizes[0],
            reserved=sizes[1],
            standing=load,
            card=took.card,
            host=took.host,
            link=took.link,
            peers=took.peers,
        )
