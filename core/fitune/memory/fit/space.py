"""What there is to choose from, and what a card leaves for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fitune.memory.fit.choices import Choice, Picks, tables_of
from fitune.memory.fit.estimate import SHORT
from fitune.memory.fit.tracing import Trial
from fitune.memory.forecast import margin_of
from fitune.plugin.strategy import Plan

CHANGED = 1.02
"""What a strategy that changes numbers must be faster by, for each of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatches:
    """How a step's rows are cut into micro-batches."""

    micro_batch: int
    accumulation: int
    chosen: bool
    """Whether that was left to the search."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What there is to choose from."""

    choices: Sequence[Choice]
    named: frozenset[str]
    """Strategies that the recipe names."""
    rows: Sequence[MicroBatches]
    """Ways to cut a step; the first has the fewest rows to a micro-batch."""
    layers: int
    """Of the model; 1 for one that cannot be shortened, which is then traced as it is."""
    usable: int
    """Bytes that the allocator can have."""
    plan: Plan
    """What the strategies that the recipe names decide."""

    @property
    def depths(self) -> tuple[int, ...]:
        """Layers of the models that are traced to estimate from; 0 for all of them."""
        if self.layers == 1:
            return (0,)
        return SHORT if self.layers >= SHORT[1] else (1, self.layers)

    @property
    def counted(self) -> int | None:
        """Which choice counts layers."""
        return next((at for at, choice in enumerate(self.choices) if choice.fit.layers), None)

    def trial(self, picks: Picks, rows: MicroBatches, count: int | None) -> Trial:
        """The composition with the counted choice in so many layers; None for all, 0 for none."""
        if count == 0:
            picks = self.unworked(picks)
        number = None if count in (None, 0, self.layers) else count
        tables = tables_of(self.choices, picks, number)
        return Trial(
            tables=tables, micro_batch=rows.micro_batch, accumulation=rows.accumulation if rows.chosen else None
        )

    def unworked(self, picks: Picks) -> Picks:
        """Without the counted choice, and what needs it."""
        if self.counted is None:
            return picks
        gone = self.choices[self.counted].name
        return tuple(
            -1 if choice.name == gone or choice.fit.needs == gone else pick
            for choice, pick in zip(self.choices, picks, strict=True)
        )

    def limit(self, picks: Picks) -> float:
        """Bytes that may be reserved, the margin left free that the plan of the composition asks for."""
        taken = [choice.plans[pick] for choice, pick in zip(self.choices, picks, strict=True) if pick >= 0]
        plans = (self.plan, *taken)
        whole = Plan(allocator=tuple(setting for plan in plans for setting in plan.allocator))
        quantized = any(plan.quantized for plan in plans)
        return self.usable - margin_of(self.usable, expandable=whole.expandable, quantized=quantized)

    def handicap(self, picks: Picks) -> float:
        """What its time is multiplied by, to be compared."""
        changed = sum(choice.changes_numbers for choice, pick in zip(self.choices, picks, strict=True) if pick >= 0)
        return CHANGED**changed
