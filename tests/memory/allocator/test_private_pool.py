"""The pool that CUDA graphs have to themselves: blocks of one pool never serve the other."""

from __future__ import annotations

import pytest

from fitune.memory.allocator.allocator import CLOSE_POOL, EMPTY_CACHE, OutOfMemory
from fitune.memory.allocator.replay import replay, smallest_capacity
from fitune.plugin.units import MIB

LARGE = 40 * MIB
both = pytest.mark.parametrize("expandable", [False, True])


@both
def test_what_the_private_pool_frees_is_not_for_others(expandable: bool) -> None:
    events = [(1, LARGE), (-1, 0), (2, LARGE), (-2, 0), (3, LARGE)]
    found = replay(events, expandable=expandable, apart={1, 3})
    assert (found.peak_allocated, found.peak_reserved, found.peak_reserved_apart) == (LARGE, 2 * LARGE, LARGE)
    assert replay(events, expandable=expandable).peak_reserved == LARGE


@both
def test_an_empty_cache_leaves_the_private_pool_as_it_is(expandable: bool) -> None:
    events = [(1, LARGE), (2, LARGE), (-1, 0), (-2, 0), (0, EMPTY_CACHE)]
    found = replay(events, expandable=expandable, apart={1})
    assert (found.reserved, found.reserved_apart) == (LARGE, LARGE)


@both
def test_a_pool_that_is_given_up_is_given_back_but_for_what_stays_in_it(expandable: bool) -> None:
    events = [(1, LARGE), (2, LARGE), (-1, 0), (0, CLOSE_POOL), (3, LARGE)]
    found = replay(events, expandable=expandable, apart={1, 2, 3})
    assert (found.reserved, found.reserved_apart) == (2 * LARGE, LARGE)
    found.free(2)
    found.release()
    assert found.reserved == LARGE, "what stayed in it is gone too"


@both
def test_the_private_pool_does_not_have_the_cache_given_back(expandable: bool) -> None:
    """As torch: no cached block is released while anything is taken from a private pool."""
    cached = [(1, LARGE), (-1, 0)]
    with pytest.raises(OutOfMemory):
        replay([*cached, (2, 2 * LARGE)], expandable=expandable, apart={2}, capacity=2 * LARGE)
    assert replay([*cached, (2, 2 * LARGE)], expandable=expandable, capacity=2 * LARGE).retries == (not expandable)
    emptied = [*cached, (0, EMPTY_CACHE), (2, 2 * LARGE)]
    assert replay(emptied, expandable=expandable, apart={2}, capacity=2 * LARGE).reserved == 2 * LARGE
    assert smallest_capacity(emptied, expandable=expandable, apart={2}) == 2 * LARGE
    assert smallest_capacity([*cached, (2, 2 * LARGE)], expandable=expandable, apart={2}) == 3 * LARGE
