"""The forecast of a run on a card: what it takes at most, what for, and whether it fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fitune.memory.allocator.allocator import CachingAllocator, OutOfMemory
from fitune.memory.allocator.replay import Rises, replay, smallest_capacity
from fitune.memory.cards.cards import Card
from fitune.memory.cards.several import with_groups
from fitune.memory.ledger import Ledger, make_ledger
from fitune.memory.shapes import Shapes
from fitune.memory.trace.run import Trace, trace
from fitune.plugin.recipe import Recipe
from fitune.plugin.records import MemoryTwin


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """A run's memory on a card, or on each of several, forecast. All sizes are bytes."""

    card: Card
    shapes: Shapes
    trace: Trace
    ledger: Ledger
    expandable: bool
    """Whether the allocator's segments grow (`expandable-segments`)."""
    allocated: int
    """The most that the caching allocator has given out at once."""
    reserved: int
    """The most that it has taken of the card, if it never runs short."""
    needed: int
    """The least that it must be able to take of the card for the run to get through: short of memory, it gives back
    what it keeps for later and asks again, which costs time."""
    pool: int
    """Of the reserved bytes, those of the pool that CUDA graphs have to themselves; 0 where there are none."""
    margin: int
    """What the forecast may be wrong by, as measured (`fitune.memory.forecast`)."""
    passes: bool
    """Whether the run gets through on this card with the margin left over."""

    @property
    def spare(self) -> int:
        """Bytes of the card that are left, context and margin aside; negative where they are missing."""
        return self.card.usable - self.margin - self.needed

    @property
    def used(self) -> int:
        """Bytes of the card that the run takes if it never runs short, its context and NCCL's part included."""
        return self.reserved + self.card.outside

    @property
    def outside(self) -> tuple[tuple[str, int], ...]:
        """What the run takes of the card outside torch's allocator, and for what."""
        nccl = (("NCCL", self.card.nccl),) if self.card.nccl else ()
        return ("context", self.card.context), *nccl

    @property
    def cached(self) -> int:
        """Bytes that are reserved at the most, but not allocated at the most: fragmentation, and kept for later."""
        return self.reserved - self.ledger.peak


def forecast(recipe: Recipe, shapes: Shapes, card: Card, twins: Sequence[MemoryTwin] = ()) -> Forecast:
    """Forecast a run with batches of these shapes on a card; `twins` stand for custom kernels.

    Raises `ModelError` where it cannot be traced.
    """
    traced = trace(recipe, shapes, card, twins)
    return on_card(traced, shapes, card)


def on_card(traced: Trace, shapes: Shapes, card: Card) -> Forecast:
    """What a traced run takes on a card of the kind that it was traced for."""
    card = with_groups(card, traced.plan.context_parallel)
    log, expandable = traced.log, traced.plan.expandable
    events = list(log.sized())
    free, rises, rising = _endless(traced, events, several=card.count > 1)
    margin = margin_of(free.peak_reserved, expandable=expandable, quantized=traced.plan.quantized)
    capacity = card.usable - margin
    fits_as_it_is = free.peak_reserved <= capacity
    return Forecast(
        card=card,
        shapes=shapes,
        trace=traced,
        ledger=make_ledger(log),
        expandable=expandable,
        allocated=free.peak_allocated,
        reserved=free.peak_reserved,
        needed=smallest_capacity(
            events, expandable=expandable, apart=log.apart, streams=log.streams, rises=rises, rising=rising
        ),
        pool=free.peak_reserved_apart,
        margin=margin,
        passes=fits_as_it_is or _gets_through(traced, events, capacity, rising=rising),
    )


def _endless(traced: Trace, events: list[tuple[int, int]], *, several: bool) -> tuple[CachingAllocator, Rises, bool]:
    """The allocator after a log with no end of memory, where it reserved more than before, and whether segments rise:
    in one of several processes they lay in two ways, of which that counts which needs more.
    """
    log, expandable = traced.log, traced.plan.expandable
    found: list[tuple[CachingAllocator, Rises, bool]] = []
    for rising in (False, True) if several and not expandable else (False,):
        rises: list[tuple[int, int]] = []
        free = replay(events, expandable=expandable, apart=log.apart, streams=log.streams, rises=rises, rising=rising)
        found.append((free, rises, rising))
    return max(found, key=lambda one: one[0].peak_reserved)


def _gets_through(traced: Trace, events: list[tuple[int, int]], capacity: int, *, rising: bool) -> bool:
    log, expandable = traced.log, traced.plan.expandable
    try:
        replay(events, expandable=expandable, capacity=capacity, apart=log.apart, streams=log.streams, rising=rising)
    except OutOfMemory:
        return False
    return True


GROWING, QUANTIZED, FIXED = 0.0025, 0.01, 0.02
"""Shares of the reserved bytes: with segments that grow, with those and a quantised base model, with others."""

LEAST = 64 * 2**20
"""Bytes."""


def margin_of(reserved: int, *, expandable: bool, quantized: bool) -> int:
    """Bytes that are left free beside a forecast of so many reserved ones."""
    share = (QUANTIZED if quantized else GROWING) if expandable else FIXED
    return max(LEAST, int(reserved * share))
