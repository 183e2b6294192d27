"""Where a traced run runs out of memory, and where it would ask for just what a message says."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from fitune.compose.step import Phase
from fitune.memory.allocator.allocator import GRANULE, CachingAllocator, OutOfMemory, segment_size
from fitune.memory.oom.message import Figure, OutOfMemoryMessage
from fitune.memory.trace.load import WARM_UP
from fitune.memory.trace.log import Block, MemoryLog

UNTOUCHED = int(1.2 * 2**30)
"""Bytes of a card that transformers' warm-up of the allocator leaves alone (`caching_allocator_warmup`)."""

STRIDE = 8 * GRANULE
"""Bytes between the capacities that are tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The request that found no room. All sizes are bytes."""

    event: int
    """Its place in the log."""
    block: Block
    asked: int
    """The segment that was wanted for it, which is what torch's message says."""
    free: int
    allocated: int
    unallocated: int
    """Reserved, but held by no tensor."""
    capacity: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """A place in a log where a run asks for what the message says, on a card with this capacity."""

    failure: Failure
    off: int
    """Bytes by which this capacity differs from the expected one."""


def run_out(log: MemoryLog, capacity: int, *, expandable: bool, warm: bool = True) -> Failure | None:
    """The request of a log that this many bytes have no room for; None where it gets through.

    `warm` is whether transformers warms the allocator up before it loads weights, which it does since 4.51.
    """
    allocator = CachingAllocator(expandable=expandable, capacity=capacity)
    for event, number in enumerate(log.events):
        block = log.blocks[abs(number) - 1]
        if number < 0:
            allocator.free(-number)
            continue
        size = block.bytes
        if block.operation == WARM_UP:
            size = max(0, min(size, capacity - UNTOUCHED)) if warm else 0
        try:
            allocator.allocate(number, size)
        except OutOfMemory as error:
            return Failure(
                event=event,
                block=block,
                asked=segment_size(error.size),
                free=capacity - error.reserved,
                allocated=error.allocated,
                unallocated=error.reserved - error.allocated,
                capacity=capacity,
            )
    return None


def sighting(
    log: MemoryLog, message: OutOfMemoryMessage, capacity: int, spread: int, *, expandable: bool
) -> Sighting | None:
    """Where a run asks for what the message says, with as much free, on a capacity at most `spread` bytes off.

    The nearest such capacity counts. None where there is none.
    """
    for off, warm in itertools.product(_outwards(spread), (True, False)):
        failure = run_out(log, capacity + off, expandable=expandable, warm=warm)
        if failure is None or not _agrees(failure, message):
            continue
        if message.free is None or _as_free(failure, message.free):
            return Sighting(failure=failure, off=off)
        shift = off + message.free.bytes - failure.free  # then just as much is free, if it fails at the same request
        again = run_out(log, capacity + shift, expandable=expandable, warm=warm)
        same = again is not None and again.event == failure.event and _as_free(again, message.free)
        if again is not None and same and abs(shift) <= spread:
            return Sighting(failure=again, off=shift)
    return None


def _as_free(failure: Failure, free: Figure) -> bool:
    """Whether just about as much is free as the message says."""
    return abs(failure.free - free.bytes) <= free.error + GRANULE


def _agrees(failure: Failure, message: OutOfMemoryMessage) -> bool:
    """Whether it is the request, and the phase, that the message tells of."""
    asked = failure.asked if message.whole_segment else failure.block.bytes
    return message.asked.may_be(asked) and agreeing_phase(failure.block.phase, message.phase)


def agreeing_phase(forecast: Phase, said: Phase | None) -> bool:
    """Whether a block's phase may be what a traceback shows: the model's last layer is a part of its forward pass."""
    return said is None or forecast == said or {forecast, said} <= {"forward", "loss"}


def _outwards(spread: int) -> Iterator[int]:
    yield 0
    for off in range(STRIDE, spread + 1, STRIDE):
        yield -off
        yield off


def askers(log: MemoryLog, asked: Figure, *, whole_segment: bool, times: int = 1) -> list[Block]:
    """The blocks that a message's size could be, were they `times` as large; one of each kind, in order."""
    found: dict[tuple[object, ...], Block] = {}
    for block in log.blocks:
        if block.operation == WARM_UP or not block.bytes:
            continue
        size = -(-block.bytes * times // 512) * 512
        if asked.may_be(segment_size(size) if whole_segment else size):
            found.setdefault((block.operation, block.shape, block.dtype, block.phase), block)
    return list(found.values())
