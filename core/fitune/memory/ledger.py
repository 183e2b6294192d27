"""Reads a memory log: how much is taken when, and what it is for at the moment of the most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fitune.compose.step import Phase
from fitune.memory.trace.log import Block, Kind, MemoryLog


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What one kind of memory takes at the peak."""

    kind: Kind
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PhasePeak:
    """The most that is allocated in one phase."""

    phase: Phase
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """The most that is allocated in a stretch of a step."""

    phase: Phase
    place: str
    """The module, "the loss", or nothing for what is outside of all."""
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """Blocks at the peak that are alike: the same operation's, of one shape, for one thing."""

    block: Block
    """The first of them."""
    count: int
    bytes: int
    """Of all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """What a run's memory is for. Bytes are as the allocator counts them, rounded up to 512."""

    peak: int
    """The most that is allocated at once."""
    at: Block
    """The block that made it the most."""
    entries: tuple[Entry, ...]
    """At the peak, largest first."""
    phases: tuple[PhasePeak, ...]
    """In the order of a run; the second step stands for all."""
    largest: tuple[Holding, ...]
    """What holds most at the peak, of that which is neither weights nor the workspace of a library."""
    timeline: tuple[Moment, ...]
    """The last step, cut into stretches of equal numbers of operations."""


STANDING: tuple[Kind, ...] = ("weights", "cuBLAS workspace")

LARGEST = 10

STRETCHES = 24


def make_ledger(log: MemoryLog) -> Ledger:
    """Go through a log. Raises `ValueError` if nothing is in it."""
    levels = _levels(log)
    peak_at = max(range(len(levels)), key=levels.__getitem__)
    entries, largest = held_at(log, peak_at)
    return Ledger(
        peak=levels[peak_at],
        at=log.blocks[log.events[peak_at] - 1],
        entries=entries,
        phases=_phase_peaks(log, levels),
        largest=largest,
        timeline=_timeline(log, levels),
    )


def held_at(log: MemoryLog, event: int) -> tuple[tuple[Entry, ...], tuple[Holding, ...]]:
    """What the memory is for once this event is done, and what holds most of it, each largest first."""
    alive = _alive(log, event)
    kinds = _kinds(log)
    entries: Counter[Kind] = Counter()
    for number in alive:
        entries[kinds[number - 1]] += log.blocks[number - 1].rounded
    return tuple(Entry(kind=kind, bytes=size) for kind, size in entries.most_common()), _largest(log, alive, kinds)


def _largest(log: MemoryLog, alive: Sequence[int], kinds: Sequence[Kind]) -> tuple[Holding, ...]:
    alike: dict[tuple[object, ...], list[Block]] = {}
    for number in alive:
        block, kind = log.blocks[number - 1], kinds[number - 1]
        if kind not in STANDING:
            alike.setdefault((kind, block.operation, block.shape, block.dtype, block.bytes), []).append(block)
    held = [Holding(block=b[0], count=len(b), bytes=sum(block.rounded for block in b)) for b in alike.values()]
    return tuple(sorted(held, key=lambda holding: holding.bytes, reverse=True)[:LARGEST])


def _levels(log: MemoryLog) -> list[int]:
    """Bytes that are allocated after each event."""
    sizes = [block.rounded for block in log.blocks]
    levels: list[int] = []
    level = 0
    for number in log.events:
        level += sizes[number - 1] if number > 0 else -sizes[-number - 1]
        levels.append(level)
    return levels


def _alive(log: MemoryLog, until: int) -> list[int]:
    """Numbers of the blocks that are taken, and not given back, once this event is done."""
    alive: dict[int, None] = {}
    for number in log.events[: until + 1]:
        if number > 0:
            alive[number] = None
        else:
            del alive[-number]
    return list(alive)


def _kinds(log: MemoryLog) -> list[Kind]:
    """The kind of each block; what the forward pass itself gives back was not saved for the backward pass."""
    kinds: list[Kind] = [block.kind for block in log.blocks]
    phases = _phases_of_events(log)
    for index, number in enumerate(log.events):
        if number < 0 and kinds[-number - 1] == "saved activations" and phases[index] in ("forward", "loss"):
            kinds[-number - 1] = "temporaries"
    return kinds


def _phases_of_events(log: MemoryLog) -> list[Phase]:
    phases: list[Phase] = []
    ends = [start for start, _, _ in log.phases[1:]] + [len(log.events)]
    for (start, phase, _), end in zip(log.phases, ends, strict=True):
        phases += [phase] * (end - start)
    return phases


def _phase_peaks(log: MemoryLog, levels: Sequence[int]) -> tuple[PhasePeak, ...]:
    peaks: dict[Phase, int] = {}
    last = max((step for _, _, step in log.phases), default=0)
    ends = [start for start, _, _ in log.phases[1:]] + [len(log.events)]
    for (start, phase, step), end in zip(log.phases, ends, strict=True):
        if step in (0, last) and start < end:
            peaks[phase] = max(peaks.get(phase, 0), *levels[start:end], 0)
    return tuple(PhasePeak(phase=phase, bytes=size) for phase, size in peaks.items())


def _timeline(log: MemoryLog, levels: Sequence[int]) -> tuple[Moment, ...]:
    last = max((step for _, _, step in log.phases), default=0)
    starts = [start for start, phase, step in log.phases if step == last and phase != "evaluation"]
    if not starts:
        return ()
    evaluation = [start for start, phase, _ in log.phases if phase == "evaluation"]
    first, end = starts[0], evaluation[0] if evaluation else len(log.events)
    phases = _phases_of_events(log)
    moments = []
    for part in range(STRETCHES):
        low = first + (end - first) * part // STRETCHES
        high = max(low + 1, first + (end - first) * (part + 1) // STRETCHES)
        if low >= end:
            break
        at = max(range(low, min(high, end)), key=levels.__getitem__)
        block = log.blocks[abs(log.events[at]) - 1]
        place = block.module or ("the loss" if block.kind == "loss" else "")
        moments.append(Moment(phase=phases[at], place=place, bytes=levels[at]))
    return tuple(moments)
