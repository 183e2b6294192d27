"""Each CUDA stream has free blocks of its own: what is given back on one is of no use to another."""

import pytest

from fitune.memory.allocator.allocator import EMPTY_CACHE, GRANULE, OutOfMemory
from fitune.memory.allocator.replay import replay, smallest_capacity
from fitune.plugin.units import MIB

LARGE = 40 * MIB
EITHER = pytest.mark.parametrize("expandable", [False, True])


@EITHER
def test_what_one_stream_gives_back_serves_it_alone(expandable: bool) -> None:
    log = [(1, LARGE), (-1, 0), (2, LARGE)]
    assert replay(log, expandable=expandable).peak_reserved == LARGE
    assert replay(log, expandable=expandable, streams={1: 3, 2: 3}).peak_reserved == LARGE
    apart = replay(log, expandable=expandable, streams={1: 3})
    assert (apart.peak_reserved, apart.peak_allocated) == (2 * LARGE, LARGE)


@EITHER
def test_short_of_memory_what_another_stream_keeps_is_given_back(expandable: bool) -> None:
    log = [(1, LARGE), (-1, 0), (2, LARGE)]
    assert replay(log, expandable=expandable, capacity=LARGE, streams={2: 1}).retries == 1
    assert smallest_capacity(log, expandable=expandable, streams={2: 1}) == LARGE
    with pytest.raises(OutOfMemory):
        replay(log, expandable=expandable, capacity=LARGE - GRANULE, streams={2: 1})


def test_an_emptied_cache_is_that_of_all_streams() -> None:
    log = [(1, LARGE), (2, LARGE), (-1, 0), (-2, 0), (0, EMPTY_CACHE)]
    assert replay(log, streams={2: 1}).reserved == 0
