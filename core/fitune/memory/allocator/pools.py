"""The free blocks of a pool of torch's CUDA caching allocator: best fit, splitting, merging, room for more pages.

Names in backquotes are those of `c10/cuda/CUDACachingAllocator.cpp`; sizes and addresses are bytes.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping
from dataclasses import dataclass

SMALL_BUFFER = 2 * 2**20
"""`kSmallBuffer`: a segment of the small pool, and a page of its expandable segment, in bytes."""

LARGE_BUFFER = 20 * 2**20
"""`large_segment_size`, once `kLargeBuffer`: a segment for the smaller requests of the large pool, and a page of its
expandable segment, in bytes."""

ADDRESSES = LARGE_BUFFER << 24
"""Bytes of address space of an expandable segment: a multiple of both page sizes, more than any log takes."""

SHIFT = 64
"""A free block's place in its pool is `size << SHIFT | address`: ordered by size, then by address."""


@dataclass(slots=True, eq=False)
class Piece:
    """A piece of a segment; `before` and `after` are its neighbours there, whatever their state."""

    size: int
    address: int
    pool: Pool
    before: Piece | None = None
    after: Piece | None = None
    busy: bool = True
    mapped: bool = True


class Pool:
    """Free blocks in the order of best fit, and the unmapped ones of an expandable segment in that of addresses."""

    __slots__ = ("_free", "_order", "_unmapped", "_unmapped_order", "page", "small")

    def __init__(self, *, small: bool, expandable: bool) -> None:
        self.small = small
        self.page = SMALL_BUFFER if small else LARGE_BUFFER
        self._order: list[int] = []
        self._free: dict[int, Piece] = {}
        self._unmapped_order: list[int] = []
        self._unmapped: dict[int, Piece] = {}
        if expandable:
            base = 0 if small else ADDRESSES
            self.add(Piece(ADDRESSES, base, self, mapped=False))

    @property
    def pieces(self) -> list[Piece]:
        """All that it has: free blocks, and unmapped ones."""
        return [*self._free.values(), *self._unmapped.values()]

    def taken_over(self, other: Pool, pieces: Mapping[int, Piece]) -> None:
        """Become what another pool is, with the pieces that stand for its own, by their ids."""
        self._order, self._unmapped_order = other._order.copy(), other._unmapped_order.copy()
        self._free = {key: pieces[id(piece)] for key, piece in other._free.items()}
        self._unmapped = {address: pieces[id(piece)] for address, piece in other._unmapped.items()}

    def add(self, block: Piece) -> None:
        block.busy = False
        if block.mapped:
            key = block.size << SHIFT | block.address
            insort(self._order, key)
            self._free[key] = block
        else:
            insort(self._unmapped_order, block.address)
            self._unmapped[block.address] = block

    def remove(self, block: Piece) -> None:
        if block.mapped:
            key = block.size << SHIFT | block.address
            del self._free[key]
            del self._order[bisect_left(self._order, key)]
        else:
            del self._unmapped[block.address]
            del self._unmapped_order[bisect_left(self._unmapped_order, block.address)]

    def free(self) -> list[Piece]:
        """The free blocks, smallest first."""
        return [self._free[key] for key in self._order]

    def best_fit(self, size: int, *, expandable: bool) -> Piece | None:
        """Take out the free block to use for a request, `get_free_block`; None if none is large enough."""
        order, free = self._order, self._free
        at = bisect_left(order, size << SHIFT)
        if at == len(order):
            return None
        block = free[order[at]]
        if expandable:  # a block that can still grow counts as what it can grow to, so a larger one may fit better
            while at + 1 < len(order) and _reach(after := free[order[at + 1]]) < _reach(block):
                at, block = at + 1, after
        del free[order.pop(at)]
        return block

    def room(self, size: int) -> Piece:
        """The first of the free and unmapped neighbours, at the lowest address, that together hold `size` bytes."""
        for address in self._unmapped_order:  # `find_expandable_block`
            first = self._unmapped[address]
            if first.before is not None and not first.before.busy:
                first = first.before
            held, block = 0, first
            while held < size and not block.busy:
                held += block.size
                if block.after is None:
                    break
                block = block.after
            if held >= size:
                return first
        raise AssertionError("the address space has an end after all")

    def merge(self, block: Piece, other: Piece | None) -> None:
        """`try_merge_blocks`: `block`, which is in no list, takes in a neighbour that is free and mapped like it."""
        if other is None or other.busy or other.mapped is not block.mapped:
            return
        self.remove(other)
        if other is block.before:
            block.address = other.address
            block.before = other.before
            if block.before is not None:
                block.before.after = block
        else:
            block.after = other.after
            if block.after is not None:
                block.after.before = block
        block.size += other.size

    def cut(self, block: Piece, size: int, *, mapped: bool) -> Piece:
        """Keep the first `size` bytes of a block that is in no list; the rest, which is returned, becomes free."""
        rest = Piece(block.size - size, block.address + size, self, block, block.after, mapped=mapped)
        if block.after is not None:
            block.after.before = rest
        block.after = rest
        block.size = size
        self.add(rest)
        return rest


def _reach(block: Piece) -> int:
    """What a free block holds, with the unmapped addresses behind it that it could grow into."""
    after = block.after
    return block.size if after is None or after.mapped else block.size + after.size
