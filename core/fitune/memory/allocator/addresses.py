"""Where segments of memory lie: the driver's choice, by which one of several free blocks of one size is taken.

`cudaMalloc` gives address space in chunks of 32 MiB, each request whole ones below all older ones; what a chunk has
left serves later requests that it holds, at the lowest address first. No document says so: it was read off the
addresses that a run on an H200 was given (CUDA 13.0), 117 of 117 of them until a library took 8 MiB in between
(`tests/memory/allocator/test_addresses.py` has them). Between free blocks of one size torch takes the lowest, so a run
that was forecast with every segment above the older ones was 4.9 % short of what it reserved, and two that others have
measured on a T4 7 and 9 %, which are exact now.
"""

from __future__ import annotations

from bisect import insort

CHUNK = 32 * 2**20
"""Bytes of address space that the driver takes at a time."""

TOP = 1 << 46
"""Below which all lies: no run's memory reaches down to nothing."""


class Addresses:
    """The address space of one card, as a process is given it; all are bytes."""

    def __init__(self) -> None:
        self._bottom = TOP
        self._left: list[tuple[int, int]] = []
        """What chunks have left: address and size, by address."""

    def copied(self) -> Addresses:
        """Another one, of which as much is taken."""
        copy = Addresses()
        copy._bottom, copy._left = self._bottom, self._left.copy()
        return copy

    def take(self, size: int) -> int:
        """The address of a new segment."""
        for at, (address, left) in enumerate(self._left):
            if left >= size:
                self._left[at : at + 1] = [(address + size, left - size)] if left > size else []
                return address
        whole = -(-size // CHUNK) * CHUNK
        self._bottom -= whole
        if whole > size:
            self._left.insert(0, (self._bottom + size, whole - size))
        return self._bottom

    def give(self, address: int, size: int) -> None:
        """A segment is no longer there: its room serves others, together with what is left beside it."""
        insort(self._left, (address, size))
        joined: list[tuple[int, int]] = []
        for start, length in self._left:
            if joined and sum(joined[-1]) == start:
                joined[-1] = (joined[-1][0], joined[-1][1] + length)
            else:
                joined.append((start, length))
        self._left = joined


class Rising(Addresses):
    """Each segment above all older ones. So they lay, to the byte of what was reserved, in each of four processes that
    trained shards on four H200s (`benchmarks/several_4.json`), of which the driver has other segments too: NCCL's, and
    those that a card opens to others.
    """

    def __init__(self) -> None:
        super().__init__()
        self._top = 0

    def copied(self) -> Rising:
        """Another one, of which as much is taken."""
        copy = Rising()
        copy._top = self._top
        return copy

    def take(self, size: int) -> int:
        """The address of a new segment."""
        self._top += size
        return self._top - size

    def give(self, address: int, size: int) -> None:
        """A segment is no longer there; nothing comes in its place."""
