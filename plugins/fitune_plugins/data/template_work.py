"""How much work one rendering of a chat template may be: templates come with models, and may be anybody's.

An honest template writes what a row says a few times over, in a time that grows with the row. So there are limits,
which grow with it, to the processor's time, to the size of any text or list, and to the memory that they take.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

SECONDS = 1.0
"""Of the processor, for one rendering of a small row."""
SECONDS_OF_ITEM, SECONDS_OF_CHARACTER = 50e-6, 0.2e-6
"""More, for each value and each character of the row: several times what real templates take."""
LARGEST, LARGEST_FOR_ROW = 10_000_000, 10
"""Characters, and values of eight each, of anything that is made; and more of them for each that the row has."""
MEMORY, MEMORY_FOR_ROW = 1 << 28, 50
"""Bytes by which the process may grow; and more of them for each character or value of the row."""
LOOK = 100_000_000
"""Characters that are made until the process is looked at: what is made may be gone again at once."""
MOST = 4_000_000_000
"""Characters of all that is made where the process cannot be looked at."""
BITS = 100_000
"""Of an integer: products and powers of larger ones take long."""
KEPT = 1_000_000
"""Values of lists whose sizes are known at a time."""
UNCOUNTED = 256
"""Characters of a text that is too small to count."""


class TooMuch(Exception):
    """More work than any honest template makes of this row; the message says of what."""


class Size(NamedTuple):
    """How large a value is when it is written out: one that stands in it twice counts twice."""

    characters: int
    items: int = 1
    """Values, itself among them."""
    depth: int = 0
    """Of lists and mappings in each other."""

    @property
    def weight(self) -> int:
        """Characters, with eight for each value."""
        return self.characters + 8 * self.items


class Work:
    """The work of one rendering."""

    def __init__(self, row: object = ()) -> None:
        """`row` is all that the template is given."""
        self.row = row
        self._sizes: dict[int, tuple[object, Size]] = {}
        self._kept = 0
        self._made = 0
        self._look_at_made = LOOK
        self._peak: int | None = None
        self._began, self._look_at = time.thread_time(), time.perf_counter() + SECONDS
        self._seconds, self._largest, self._memory = SECONDS, LARGEST, MEMORY
        self._grown = False

    def turn(self) -> None:
        """One more turn of a loop, or call. Raises `TooMuch` where the processor has had too much time.

        The clock is asked first, which is cheaper to ask than the time of this thread.
        """
        if time.perf_counter() < self._look_at:
            return
        spent = time.thread_time() - self._began
        if spent >= self._seconds and not self._grown:
            self._grow()
        if spent >= self._seconds:
            raise TooMuch(f"it computes for more than {self._seconds:.0f} s")
        self._look_at = time.perf_counter() + self._seconds - spent

    def allow(self, weight: int) -> None:
        """Something of this weight is to be made. Raises `TooMuch`."""
        if weight > self._largest and not self._grown:
            self._grow()
        if weight > self._largest:
            raise TooMuch(f"it makes more than {self._largest:,} characters or values of it")

    def made(self, value: T) -> T:
        """Something that was made, which is given back. Raises `TooMuch`."""
        if isinstance(value, str | bytes):
            if len(value) > UNCOUNTED:
                self.turn()
                self.allow(len(value))
                self._add(len(value))
        elif isinstance(value, list | tuple | dict):
            self.allow(self.size(value).weight)
            self._add(8 * len(value))
        elif isinstance(value, int) and value.bit_length() > BITS:
            raise TooMuch(f"it computes with an integer of more than {BITS:,} bits")
        return value

    def size(self, value: object) -> Size:
        """How large a value is; what it is made of is looked at once, however often it stands in it."""
        if isinstance(value, str | bytes):
            return Size(len(value))
        if not isinstance(value, list | tuple | dict):
            return Size(0)
        known = self._sizes.get(id(value))
        if known is not None:
            return known[1]
        parts: Iterable[object] = [*value, *value.values()] if isinstance(value, dict) else value
        characters, items, depth = 0, 1, 0
        for part in parts:
            size = self.size(part)
            characters, items, depth = characters + size.characters, items + size.items, max(depth, size.depth)
        return self.keep(value, Size(characters, items, depth + 1))

    def keep(self, value: list[Any] | tuple[Any, ...] | dict[Any, Any], size: Size) -> Size:
        """Note the size of a value, which stays as it is: templates cannot change what they have made."""
        self._kept += len(value)
        if self._kept > KEPT:
            self._sizes.clear()
            self._kept = len(value)
        self._sizes[id(value)] = value, size
        return size

    def _add(self, weight: int) -> None:
        self._made += weight
        if self._made < self._look_at_made:
            return
        self._look_at_made += LOOK
        peak = peak_memory()
        self._peak = peak if self._peak is None else self._peak
        if peak - self._peak > self._memory and not self._grown:
            self._grow()
        if peak - self._peak > self._memory or (not peak and self._made > MOST):
            raise TooMuch(f"it fills {max(peak - self._peak, 0) >> 20:,} MiB of memory")

    def _grow(self) -> None:
        """Let the limits be those of the row, which is looked at only where it may matter."""
        self._grown = True
        size = self.size(self.row)
        self._seconds += SECONDS_OF_ITEM * size.items + SECONDS_OF_CHARACTER * size.characters
        self._largest = min(sys.maxsize, self._largest + LARGEST_FOR_ROW * size.weight)
        self._memory += MEMORY_FOR_ROW * size.weight


def peak_memory() -> int:
    """The most bytes that this process has had in memory; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
