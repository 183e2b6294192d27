"""What torch's CUDA caching allocator reserves for a log of allocations: a model of it in plain Python.

It follows `c10/cuda/CUDACachingAllocator.cpp` (torch 2.11 to 2.13) and `c10/core/AllocatorConfig.h` at their default
settings: each stream has free blocks of its own, and CUDA graphs a private pool. The constants carry the names that
they have there. Reserved bytes are what a card must hold; allocated bytes are the blocks that tensors occupy.

What it leaves out: an expandable segment has room for 9/8 of a card's memory there, but without end here; and what
libraries ask the driver for lies between torch's segments, whose addresses are else as in `addresses.py`. `capacity` is
memory that runs out, not `set_per_process_memory_fraction`, which counts otherwise.
"""

from __future__ import annotations

from dataclasses import replace

from fitune.memory.allocator.addresses import Addresses, Rising
from fitune.memory.allocator.pools import LARGE_BUFFER, SMALL_BUFFER, Piece, Pool
from fitune.plugin.units import MIB

MIN_BLOCK = 512
"""`kMinBlockSize`: every size is rounded up to a multiple of it, in bytes."""

SMALL_SIZE = 1 * MIB
"""`kSmallSize`: the largest request that the pool of small blocks serves, in bytes."""

MIN_LARGE_ALLOC = 10 * MIB
"""`kMinLargeAlloc`: from this size on, a request gets a segment of its own size, in bytes."""

ROUND_LARGE = 2 * MIB
"""`kRoundLarge`: what such a segment's size is rounded up to, in bytes."""

EMPTY_CACHE, CLOSE_POOL = 0, 1
"""What events of no block mean: all that is cached is given back; and the private pool is given up before."""

COUNTS = (
    "allocated",
    "peak_allocated",
    "reserved",
    "peak_reserved",
    "retries",
    "reserved_apart",
    "peak_reserved_apart",
)
"""What an allocator counts."""

GRANULE = 2 * MIB
"""Every segment and every page is a multiple of this, so capacities between two multiples are all alike."""


class OutOfMemory(Exception):
    """A request that found no room, not even after all that is cached was given back.

    `size` is the request, rounded as the allocator rounds it; all are bytes, at the time of the failure.
    """

    def __init__(self, *, size: int, allocated: int, reserved: int, capacity: int) -> None:
        super().__init__(f"no room for {size} bytes: {allocated} allocated, {reserved} reserved, {capacity} at most")
        self.size = size
        self.allocated = allocated
        self.reserved = reserved
        self.capacity = capacity


class CachingAllocator:
    """The allocator of one card: hands out blocks, and counts what is allocated and reserved, all in bytes.

    `expandable` is `expandable_segments:True`; `capacity` is how many bytes the card has for it, None for no end; with
    `rising` segments lie as `Rising` has it.
    """

    def __init__(self, *, expandable: bool = False, capacity: int | None = None, rising: bool = False) -> None:
        self.expandable = expandable
        self.capacity = capacity
        self.allocated = 0
        self.peak_allocated = 0
        self.reserved = 0
        self.peak_reserved = 0
        self.retries = 0
        """How many times the cache was given back because memory had run out, torch's `num_alloc_retries`."""
        self.reserved_apart = 0
        """Of the reserved bytes, those of the private pool."""
        self.peak_reserved_apart = 0
        self._general = _pools(expandable)
        self._streams: dict[int, tuple[Pool, Pool]] = {0: self._general}
        """Of each stream: what is free on one serves requests on that one alone."""
        self._private = _pools(expandable)
        self._closed: list[tuple[Pool, Pool]] = []
        """Private pools that were given up."""
        self._blocks: dict[int, Piece | None] = {}
        self._addresses = Rising() if rising else Addresses()

    @property
    def unallocated(self) -> int:
        """Bytes that are reserved and that no tensor occupies: cached blocks, and what is lost between them."""
        return self.reserved - self.allocated

    @property
    def pools(self) -> tuple[Pool, ...]:
        """All pools of free blocks: those of streams, the private ones, and those that were given up."""
        return tuple(pool for pools in (*self._streams.values(), self._private, *self._closed) for pool in pools)

    def allocate(self, block: int, size: int, *, apart: bool = False, stream: int = 0) -> None:
        """Allocate `size` bytes as block number `block` on a stream, from the private pool if it is to stand `apart`.

        Raises `OutOfMemory` where the capacity is not enough, with everything that was cached given back, and
        `ValueError` for a number that is in use.
        """
        if block in self._blocks:
            raise ValueError(f"block {block} is allocated already")
        if size == 0:  # an empty tensor never reaches the allocator
            self._blocks[block] = None
            return
        size = round_size(size)
        small, large = self._private if apart else self._of_stream(stream)
        pool = small if size <= SMALL_SIZE else large
        found = pool.best_fit(size, expandable=self.expandable) or self._more(pool, size)
        rest = found.size - size
        if rest >= MIN_BLOCK if self.expandable or pool.small else rest > SMALL_SIZE:  # `should_split`
            pool.cut(found, size, mapped=True)
        found.busy = True
        self._blocks[block] = found
        self.allocated += found.size
        if self.allocated > self.peak_allocated:
            self.peak_allocated = self.allocated

    def free(self, block: int) -> None:
        """Give block number `block` back to its pool. Raises `KeyError` for a number that is not allocated."""
        freed = self._blocks.pop(block)
        if freed is None:
            return
        self.allocated -= freed.size
        pool = freed.pool
        pool.merge(freed, freed.before)
        pool.merge(freed, freed.after)
        pool.add(freed)

    def forked(self, capacity: int | None) -> CachingAllocator:
        """The same allocator on a card of another capacity; what becomes of the one is nothing to the other."""
        twin = CachingAllocator(expandable=self.expandable, capacity=capacity)
        for name in COUNTS:
            setattr(twin, name, getattr(self, name))
        twin._streams = {stream: _pools(self.expandable) for stream in self._streams}
        twin._general = twin._streams[0]
        twin._closed = [_pools(self.expandable) for _ in self._closed]
        twin._addresses = self._addresses.copied()
        pools = {id(pool): of_twin for pool, of_twin in zip(self.pools, twin.pools, strict=True)}
        busy = [piece for piece in self._blocks.values() if piece is not None]
        own = [*busy, *(piece for pool in self.pools for piece in pool.pieces)]
        pieces = {id(one): replace(one, pool=pools[id(one.pool)]) for one in own}
        for piece in pieces.values():
            piece.before = None if piece.before is None else pieces[id(piece.before)]
            piece.after = None if piece.after is None else pieces[id(piece.after)]
        for pool in self.pools:
            pools[id(pool)].taken_over(pool, pieces)
        twin._blocks = {block: None if one is None else pieces[id(one)] for block, one in self._blocks.items()}
        return twin

    def _of_stream(self, stream: int) -> tuple[Pool, Pool]:
        found = self._streams.get(stream)
        if found is None:
            found = self._streams[stream] = _pools(self.expandable)
        return found

    def _more(self, pool: Pool, size: int) -> Piece:
        """A block from memory that is not reserved yet, after giving back what is cached if need be.

        While a private pool is at work, nothing is given back (`captures_underway`).
        """
        grow = self._map if self.expandable else self._segment
        block = grow(pool, size)
        if block is None and pool not in self._private:
            self.retries += 1
            self.release()
            block = grow(pool, size)
        if block is None:
            assert self.capacity is not None
            raise OutOfMemory(size=size, allocated=self.allocated, reserved=self.reserved, capacity=self.capacity)
        return block

    def _reserve(self, size: int, pool: Pool) -> bool:
        """Take `size` bytes of the card for a pool; False if it has no more."""
        if self.capacity is not None and self.reserved + size > self.capacity:
            return False
        self.reserved += size
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        if pool in self._private:
            self.reserved_apart += size
            self.peak_reserved_apart = max(self.peak_reserved_apart, self.reserved_apart)
        return True

    def _segment(self, pool: Pool, size: int) -> Piece | None:
        """A new segment by `cudaMalloc`."""
        size = segment_size(size)
        if not self._reserve(size, pool):
            return None
        return Piece(size, self._addresses.take(size), pool)

    def _map(self, pool: Pool, size: int) -> Piece | None:
        """Pages of the expandable segment, mapped where there is room: `try_allocate_expandable_block`."""
        block = pool.room(size)
        if not block.mapped and not self._map_pages(pool, block, min(size, block.size)):
            return None
        while block.size < size:
            following = block.after
            assert following is not None
            if not self._map_pages(pool, following, min(size - block.size, following.size)):
                return None
            block = following  # which has taken in what was free before it
        pool.remove(block)
        return block

    def _map_pages(self, pool: Pool, block: Piece, size: int) -> bool:
        """Back the first `size` bytes of an unmapped block with whole pages; it becomes a free block: `map_block`."""
        size = _up(size, pool.page)
        if not self._reserve(size, pool):
            return False
        pool.remove(block)
        if size < block.size:
            pool.cut(block, size, mapped=False)
        block.mapped = True
        pool.merge(block, block.before)
        pool.merge(block, block.after)
        pool.add(block)
        return True

    def close_pool(self) -> None:
        """Give up the private pool: another one takes its place, and its own memory is given back as it is free."""
        self._closed.append(self._private)
        self._private, self.reserved_apart = _pools(self.expandable), 0

    def release(self) -> None:
        """Give back whole free segments, or whole free pages, but for the private pool's: `release_cached_blocks`."""
        shared = (*self._streams.values(), *self._closed)
        for pool in (large_or_small for pools in shared for large_or_small in reversed(pools)):
            for block in pool.free():
                if self.expandable:
                    self._unmap(pool, block)
                elif block.before is None and block.after is None:
                    pool.remove(block)
                    self._addresses.give(block.address, block.size)
                    self.reserved -= block.size

    def _unmap(self, pool: Pool, block: Piece) -> None:
        """Give back the pages that lie wholly in a free block; what stands over at its ends stays: `unmap_block`."""
        start, end = _up(block.address, pool.page), (block.address + block.size) // pool.page * pool.page
        if start >= end:
            return
        pool.remove(block)
        if block.address + block.size > end:
            pool.cut(block, end - block.address, mapped=True)
        if block.address < start:
            block = pool.cut(block, start - block.address, mapped=True)
            pool.remove(block)
            assert block.before is not None
            pool.add(block.before)
        block.mapped = False
        pool.merge(block, block.before)
        pool.merge(block, block.after)
        pool.add(block)
        self.reserved -= end - start


def _pools(expandable: bool) -> tuple[Pool, Pool]:
    """For small blocks, and for large ones."""
    return Pool(small=True, expandable=expandable), Pool(small=False, expandable=expandable)


def round_size(size: int) -> int:
    """What a request of `size` bytes, which is not 0, occupies at least: `round_size` without power-of-2 divisions."""
    return _up(size, MIN_BLOCK)


def segment_size(size: int) -> int:
    """Bytes of the segment that is made for a request of `size` bytes, rounded: `get_allocation_size`."""
    if size <= SMALL_SIZE:
        return SMALL_BUFFER
    return LARGE_BUFFER if size < MIN_LARGE_ALLOC else _up(size, ROUND_LARGE)


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit
