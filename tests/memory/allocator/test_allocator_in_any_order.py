"""What must hold of the model of torch's caching allocator, whatever is allocated and freed."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitune.memory.allocator.allocator import COUNTS, GRANULE, CachingAllocator, OutOfMemory
from fitune.memory.allocator.pools import Piece
from fitune.memory.allocator.replay import replay, smallest_capacity
from fitune.plugin.units import MIB

Log = list[tuple[int, int]]


@st.composite
def logs(draw: st.DrawFn) -> Log:
    """Any order of allocations and frees, of sizes on both sides of each of the allocator's limits."""
    sizes = st.one_of(
        st.integers(0, 4096),
        st.integers(1, 3 * MIB),
        st.integers(MIB, 40 * MIB),
        st.sampled_from([MIB, MIB + 1, 2 * MIB, 10 * MIB - 512, 10 * MIB, 20 * MIB]),
    )
    log: Log = []
    live: list[int] = []
    for number in range(1, draw(st.integers(1, 60)) + 1):
        if draw(st.booleans()) and live:
            log.append((-live.pop(draw(st.integers(0, len(live) - 1))), 0))
        log.append((number, draw(sizes)))
        live.append(number)
    return log


def pieces(allocator: CachingAllocator) -> list[Piece]:
    """Every block of the allocator, used and free, mapped and not, by way of its neighbours."""
    known = [block for block in allocator._blocks.values() if block is not None]
    known += [block for pool in allocator.pools for block in pool.free()]
    seen: dict[int, Piece] = {}
    while known:
        block = known.pop()
        if id(block) not in seen:
            seen[id(block)] = block
            known += [near for near in (block.before, block.after) if near is not None]
    return list(seen.values())


@pytest.mark.parametrize("expandable", [False, True])
@given(log=logs(), spare=st.integers(0, 3), apart=st.frozensets(st.integers(1, 60)))
@settings(deadline=None, max_examples=60)
def test_what_holds_after_every_event(log: Log, spare: int, apart: frozenset[int], expandable: bool) -> None:
    capacity = smallest_capacity(log, expandable=expandable, apart=apart) + spare * GRANULE
    allocator = CachingAllocator(expandable=expandable, capacity=capacity)
    requested: dict[int, int] = {}
    peaks = (0, 0)
    for block, size in log:
        try:
            allocator.allocate(block, size, apart=block in apart) if block > 0 else allocator.free(-block)
        except OutOfMemory:
            assert spare, "the smallest capacity itself is enough"
            break
        if block > 0:
            requested[block] = size
        else:
            del requested[-block]
        assert sum(requested.values()) <= allocator.allocated <= allocator.reserved <= capacity
        assert allocator.reserved_apart <= allocator.reserved
        assert allocator.unallocated == allocator.reserved - allocator.allocated
        assert peaks <= (allocator.peak_allocated, allocator.peak_reserved)
        peaks = (allocator.peak_allocated, allocator.peak_reserved)
    check_pieces(allocator)
    for block in requested:
        allocator.free(block)
    check_pieces(allocator)
    assert allocator.allocated == 0


@pytest.mark.parametrize("expandable", [False, True])
@given(log=logs(), apart=st.frozensets(st.integers(1, 60)))
@settings(deadline=None, max_examples=60)
def test_the_smallest_capacity_is_enough_for_a_replay_of_all_and_a_granule_less_is_not(
    log: Log, apart: frozenset[int], expandable: bool
) -> None:
    streams = dict.fromkeys(range(1, 60, 7), 1)
    found = smallest_capacity(log, expandable=expandable, apart=apart, streams=streams)

    def gets_through(capacity: int) -> bool:
        try:
            replay(log, expandable=expandable, capacity=capacity, apart=apart, streams=streams)
        except OutOfMemory:
            return False
        return True

    assert gets_through(found)
    assert not found or not gets_through(found - GRANULE)


@pytest.mark.parametrize("expandable", [False, True])
@given(log=logs(), at=st.integers(0, 80), spare=st.integers(-2, 3), apart=st.frozensets(st.integers(1, 60)))
@settings(deadline=None, max_examples=60)
def test_a_fork_goes_its_own_way(log: Log, at: int, spare: int, apart: frozenset[int], expandable: bool) -> None:
    capacity = smallest_capacity(log, expandable=expandable, apart=apart) + spare * GRANULE

    def state_behind(
        allocator: CachingAllocator, events: Log
    ) -> tuple[int, list[int], list[tuple[int, int, bool, bool]]]:
        """How far it got, what it counted, and where its blocks are."""
        done = 0
        try:
            for block, size in events:
                if block < 0:
                    allocator.free(-block)
                else:
                    allocator.allocate(block, size, apart=block in apart, stream=block % 2)
                done += 1
        except OutOfMemory:
            pass
        counts = [getattr(allocator, name) for name in COUNTS]
        return done, counts, sorted((one.address, one.size, one.busy, one.mapped) for one in pieces(allocator))

    whole = state_behind(CachingAllocator(expandable=expandable, capacity=capacity), log)
    shared = CachingAllocator(expandable=expandable, capacity=capacity)
    before = state_behind(shared, log[:at])
    if before[0] == len(log[:at]):
        done, *rest = state_behind(shared.forked(capacity), log[at:])
        assert (done + len(log[:at]), *rest) == whole
        assert state_behind(shared, []) == (0, *before[1:])
        endless, *_ = state_behind(shared.forked(None), log[at:])
        assert endless == len(log[at:])
        done, *rest = state_behind(shared, log[at:])
        assert (done + len(log[:at]), *rest) == whole


def check_pieces(allocator: CachingAllocator) -> None:
    """Blocks of a pool do not overlap, free neighbours are merged, and their sizes add up to what is counted."""
    blocks = pieces(allocator)
    for pool in allocator.pools:
        mine = sorted((block for block in blocks if block.pool is pool), key=lambda block: block.address)
        for first, second in itertools.pairwise(mine):
            assert first.address + first.size <= second.address
            assert (first.after is second) == (second.before is first)
            if first.after is second:
                assert first.address + first.size == second.address
                assert first.busy or second.busy or first.mapped is not second.mapped
    assert sum(block.size for block in blocks if block.busy) == allocator.allocated
    assert sum(block.size for block in blocks if block.mapped) == allocator.reserved


@pytest.mark.parametrize("expandable", [False, True])
@given(log=logs())
@settings(deadline=None, max_examples=60)
def test_a_granule_less_than_the_smallest_capacity_is_not_enough(log: Log, expandable: bool) -> None:
    capacity = smallest_capacity(log, expandable=expandable)
    assert capacity % GRANULE == 0
    assert capacity <= replay(log, expandable=expandable).peak_reserved
    assert replay(log, expandable=expandable, capacity=capacity).peak_reserved <= capacity
    if capacity:
        with pytest.raises(OutOfMemory):
            replay(log, expandable=expandable, capacity=capacity - GRANULE)
