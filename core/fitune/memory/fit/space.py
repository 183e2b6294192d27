"""What there is to choose from, and what a card leaves for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fitune.memory.fit.choices import Lever, Picks, tables_of
from fitune.memory.fit.estimate import SHORT
from fitune.memory.fit.tracing import Asked
from fitune.memory.forecast import margin_of

CHANGED = 1.02
"""What a lever that changes numbers must be faster by, for each of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """How a step's rows are cut into micro-batches."""

    micro_batch: int
    accumulation: int
    chosen: bool
    """Whether that was left to the search."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What there is to choose from."""

    levers: Sequence[Lever]
    named: frozenset[str]
    """Strategies that the recipe names."""
    rows: Sequence[Rows]
    """Ways to cut a step; the first has the fewest rows to a micro-batch."""
    layers: int
    """Of the model; 1 for one that cannot be shortened, which is then traced as it is."""
    usable: int
    """Bytes that the allocator can have."""
    quantizing: frozenset[str] = frozenset({"nf4"})
    """Strategies whose forecast needs the margin of a quantised model."""

    @property
    def depths(self) -> tuple[int, ...]:
        """Layers of the models that are traced to estimate from; 0 for all of them."""
        if self.layers == 1:
            return (0,)
        return SHORT if self.layers >= SHORT[1] else (1, self.layers)

    @property
    def counted(self) -> int | None:
        """Which lever counts layers."""
        return next((at for at, lever in enumerate(self.levers) if lever.fit.layers), None)

    def asked(self, picks: Picks, rows: Rows, count: int | None) -> Asked:
        """The composition with the counted lever in so many layers; None for all, 0 for none."""
        if count == 0:
            picks = self.unworked(picks)
        number = None if count in (None, 0, self.layers) else count
        tables = tables_of(self.levers, picks, number)
        return Asked(
            tables=tables, micro_batch=rows.micro_batch, accumulation=rows.accumulation if rows.chosen else None
        )

    def unworked(self, picks: Picks) -> Picks:
        """Without the counted lever, and what needs it."""
        if self.counted is None:
            return picks
        gone = self.levers[self.counted].name
        return tuple(
            -1 if lever.name == gone or lever.fit.needs == gone else pick
            for lever, pick in zip(self.levers, picks, strict=True)
        )

    def limit(self, picks: Picks) -> float:
        """Bytes that may be reserved, the margin left free."""
        names = self.named | {lever.name for lever, pick in zip(self.levers, picks, strict=True) if pick >= 0}
        share = margin_of(
            self.usable, expandable="expandable-segments" in names, quantized=bool(names & self.quantizing)
        )
        return self.usable - share

    def handicap(self, picks: Picks) -> float:
        """What its time is multiplied by, to be compared."""
        changed = sum(lever.changes_numbers for lever, pick in zip(self.levers, picks, strict=True) if pick >= 0)
        return CHANGED**changed
