"""Where a traced run runs out of memory, and where it would ask for just what a message says."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
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
    return _from(allocator, log, 0, _room_of_warm_up(capacity, warm=warm))


def run_outs(
    log: MemoryLog, capacities: Iterable[int], *, expandable: bool, warm: bool = True
) -> dict[int, Failure | None]:
    """The same of many capacities, for the work of few: up to where memory first runs out they have it in common."""
    alike: dict[int, list[int]] = {}
    largest = max((block.bytes for block in log.blocks if block.operation == WARM_UP), default=0)
    for capacity in set(capacities):
        alike.setdefault(min(largest, _room_of_warm_up(capacity, warm=warm)), []).append(capacity)
    found: dict[int, Failure | None] = {}
    for room, group in alike.items():
        found |= _of_group(log, sorted(group), expandable, room)
    return found


def _of_group(log: MemoryLog, capacities: Sequence[int], expandable: bool, room: int) -> dict[int, Failure | None]:
    """Of ascending capacities that leave as much room to the warm-up."""
    found: dict[int, Failure | None] = dict.fromkeys(capacities)
    refused: list[tuple[int, int]] = []  # the event at which a capacity first has too little
    endless, left = CachingAllocator(expandable=expandable), deque(capacities)
    for event in range(len(log.events)):
        _take(endless, log, event, room)
        while left and endless.peak_reserved > left[0]:
            refused.append((event, left.popleft()))
        if not left:
            break
    shared, at = CachingAllocator(expandable=expandable), 0
    for event, capacity in refused:
        while at < event:
            _take(shared, log, at, room)
            at += 1
        found[capacity] = _from(shared.forked(capacity), log, event, room)
    return found


def _from(allocator: CachingAllocator, log: MemoryLog, first: int, room: int) -> Failure | None:
    """The first request from this event on that has no room; `room` is what the warm-up may take."""
    for event in range(first, len(log.events)):
        try:
            _take(allocator, log, event, room)
        except OutOfMemory as error:
            return Failure(
                event=event,
                block=log.blocks[log.events[event] - 1],
                asked=segment_size(error.size),
                free=error.capacity - error.reserved,
                allocated=error.allocated,
                unallocated=error.reserved - error.allocated,
                capacity=error.capacity,
            )
    return None


def _take(allocator: CachingAllocator, log: MemoryLog, event: int, room: int) -> None:
    """What an event of a log does to an allocator. Raises `OutOfMemory`."""
    number = log.events[event]
    if number < 0:
        allocator.free(-number)
        return
    block = log.blocks[number - 1]
    allocator.allocate(number, min(block.bytes, room) if block.operation == WARM_UP else block.bytes)


def _room_of_warm_up(capacity: int, *, warm: bool) -> int:
    """The most bytes that transformers' warm-up takes."""
    return max(0, capacity - UNTOUCHED) if warm else 0


def sighting(
    log: MemoryLog, message: OutOfMemoryMessage, capacity: int, spread: int, *, expandable: bool
) -> Sighting | None:
    """Where a run asks for what the message says, with as much free, on a capacity at most `spread` bytes off.

    The nearest such capacity counts. None where there is none.
    """
    nearest, *others = _outwards(spread)
    warmths = (True, False) if any(block.operation == WARM_UP for block in log.blocks) else (True,)
    for offs in ([nearest], others):  # it is the nearest one most often
        capacities = [capacity + off for off in offs]
        found = {warm: run_outs(log, capacities, expandable=expandable, warm=warm) for warm in warmths}
        for off, warm in itertools.product(offs, warmths):
            failure = found[warm][capacity + off]
            if failure is None or not _agrees(failure, message):
                continue
            if message.free is None or _as_free(failure, message.free):
                return Sighting(failure=failure, off=off)
            # Then just as much is free, if it fails at the same request.
            shift = off + message.free.bytes - failure.free
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
