"""The model of torch's caching allocator: its rules one by one, by hand."""

import itertools

import pytest

from fitune.memory.allocator.allocator import CachingAllocator, OutOfMemory, segment_size
from fitune.memory.allocator.replay import replay, smallest_capacity
from fitune.plugin.units import MIB

Log = list[tuple[int, int]]


def allocations(*sizes: int) -> Log:
    """A log that allocates blocks 1, 2, 3 ... of these sizes."""
    return list(enumerate(sizes, start=1))


@pytest.mark.parametrize("expandable", [False, True])
@pytest.mark.parametrize(("size", "rounded"), [(0, 0), (1, 512), (512, 512), (513, 1024), (MIB + 1, MIB + 512)])
def test_sizes_are_rounded_to_512_bytes_and_empty_tensors_take_nothing(
    size: int, rounded: int, expandable: bool
) -> None:
    # the large pool of the default allocator would keep the remainder if it were 1 MiB or less; of 20 MiB it is not
    assert replay(allocations(size), expandable=expandable).allocated == rounded


@pytest.mark.parametrize(
    ("size", "segment"),
    [
        (512, 2 * MIB),
        (MIB, 2 * MIB),
        (MIB + 512, 20 * MIB),
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB),
        (10 * MIB + 512, 12 * MIB),
        (32 * MIB, 32 * MIB),
    ],
)
def test_a_segment_depends_on_the_size_of_the_request(size: int, segment: int) -> None:
    assert segment_size(size) == segment
    assert replay(allocations(size)).reserved == segment


@pytest.mark.parametrize(("size", "mapped"), [(512, 2), (MIB, 2), (MIB + 512, 20), (20 * MIB, 20), (21 * MIB, 40)])
def test_an_expandable_segment_grows_by_pages_of_2_and_20_mib(size: int, mapped: int) -> None:
    assert replay(allocations(size), expandable=True).reserved == mapped * MIB


def test_small_and_large_requests_never_share_a_segment() -> None:
    log = [*allocations(12 * MIB), (-1, 0), (2, 512)]
    assert replay(log).reserved == 14 * MIB
    assert replay(log, expandable=True).reserved == 22 * MIB


def test_a_large_block_keeps_a_remainder_of_up_to_1_mib() -> None:
    kept = replay([*allocations(12 * MIB), (-1, 0), (2, 11 * MIB)])
    assert (kept.allocated, kept.reserved) == (12 * MIB, 12 * MIB)
    split = replay([*allocations(12 * MIB), (-1, 0), (2, 11 * MIB - 512)])
    assert (split.allocated, split.reserved) == (11 * MIB - 512, 12 * MIB)


def test_an_expandable_block_is_split_down_to_512_bytes() -> None:
    split = replay(allocations(20 * MIB - 512, MIB + 512), expandable=True)
    assert split.allocated == 21 * MIB
    assert split.reserved == 40 * MIB, "the second block takes in the 512 bytes that were left of the first page"


def test_a_small_block_is_split_down_to_512_bytes() -> None:
    # the second request leaves 512 bytes of the segment, which the third fits exactly
    assert replay(allocations(MIB, MIB - 512, 512)).reserved == 2 * MIB


def test_the_smallest_block_that_fits_is_taken() -> None:
    log = [*allocations(16 * MIB, 12 * MIB), (-1, 0), (-2, 0), (3, 12 * MIB), (4, 16 * MIB)]
    assert replay(log).reserved == 28 * MIB, "first fit would give 16 MiB to the third block and reserve 16 more"


def test_among_blocks_of_one_size_the_lowest_address_is_taken() -> None:
    # free, both of 20 MiB: a segment of its own, and the second half of one of 40; the later segment lies below
    half_below = [*allocations(20 * MIB, 40 * MIB), (-2, 0), (3, 20 * MIB), (-1, 0), (4, 20 * MIB), (5, 30 * MIB)]
    assert replay(half_below, capacity=80 * MIB).reserved == 70 * MIB, "the segment of 20 is given back"
    half_above = [*allocations(40 * MIB, 24 * MIB, 20 * MIB), (-1, 0), (4, 20 * MIB), (-3, 0), (5, 20 * MIB)]
    with pytest.raises(OutOfMemory):  # had block 5 taken the half, the segment of 20 would have been given back
        replay([*half_above, (6, 30 * MIB)], capacity=104 * MIB)
    assert replay([*half_above, (6, 30 * MIB)], capacity=114 * MIB).reserved == 114 * MIB


@pytest.mark.parametrize("order", list(itertools.permutations([1, 2, 3])))
def test_neighbours_that_are_free_become_one_block(order: tuple[int, ...]) -> None:
    log = [*allocations(8 * MIB, 8 * MIB, 4 * MIB), *((-block, 0) for block in order), (4, 20 * MIB)]
    assert replay(log).reserved == 20 * MIB


def test_segments_are_never_merged_but_pages_of_an_expandable_one_are() -> None:
    log = [*allocations(20 * MIB, 20 * MIB), (-1, 0), (-2, 0), (3, 40 * MIB)]
    assert replay(log).reserved == 80 * MIB
    assert replay(log, expandable=True).reserved == 40 * MIB


def test_a_free_end_of_an_expandable_segment_is_grown() -> None:
    log = allocations(16 * MIB, 10 * MIB)
    assert replay(log, expandable=True).reserved == 40 * MIB  # 4 of the first 20 MiB, and 6 of the next page
    assert replay(log).reserved == 26 * MIB


def test_a_block_that_could_grow_counts_as_what_it_can_grow_to() -> None:
    # free: 8 MiB at the start, and 6 at the end of the second page, which could grow; so 6 MiB go to the start,
    # where 7 find no room any more and make the end grow. The smallest that fits would have done without a page.
    log = [*allocations(8 * MIB, 26 * MIB), (-1, 0), (3, 6 * MIB), (4, 7 * MIB)]
    assert replay(log[:-1], expandable=True).reserved == 40 * MIB
    assert replay(log, expandable=True).reserved == 60 * MIB


def test_whole_free_segments_are_given_back_before_memory_runs_out() -> None:
    log = [*allocations(12 * MIB), (-1, 0), (2, 14 * MIB)]
    assert replay(log).reserved == 26 * MIB
    tight = replay(log, capacity=16 * MIB)
    assert (tight.reserved, tight.peak_reserved, tight.retries) == (14 * MIB, 14 * MIB, 1)


def test_a_segment_with_one_used_block_is_not_given_back() -> None:
    log = [*allocations(8 * MIB, 4 * MIB), (-1, 0), (3, 14 * MIB)]
    with pytest.raises(OutOfMemory) as caught:
        replay(log, capacity=32 * MIB)
    error = caught.value
    assert (error.size, error.allocated, error.reserved, error.capacity) == (
        14 * MIB,
        4 * MIB,
        20 * MIB,
        32 * MIB,
    )
    assert str(error) == "no room for 14680064 bytes: 4194304 allocated, 20971520 reserved, 33554432 at most"
    assert replay(log, capacity=34 * MIB).retries == 0


def test_pages_that_are_wholly_free_are_unmapped_before_memory_runs_out() -> None:
    # 70 MiB in four pages; freeing the middle 45 MiB leaves one page that is wholly free, from 20 to 40 MiB,
    # and 5 MiB of the page before and behind it that stay
    log = [*allocations(15 * MIB, 30 * MIB, 35 * MIB), (-2, 0), (4, 40 * MIB)]
    assert replay(log, expandable=True).reserved == 120 * MIB
    tight = replay(log, expandable=True, capacity=100 * MIB)
    assert (tight.allocated, tight.reserved, tight.retries) == (90 * MIB, 100 * MIB, 1)


def test_pages_are_mapped_at_the_lowest_address_with_room() -> None:
    allocator = replay(
        [*allocations(20 * MIB, 40 * MIB, 20 * MIB), (-2, 0), (4, 60 * MIB)], expandable=True, capacity=120 * MIB
    )
    assert (allocator.reserved, allocator.retries) == (100 * MIB, 1), "the two pages of block 2 were unmapped"
    allocator.capacity = None
    allocator.free(4)
    allocator.allocate(5, 40 * MIB)
    allocator.allocate(6, 40 * MIB)
    # 20 MiB are free at the end, where one page more would do; but the gap, of two pages, lies lower
    assert (allocator.allocated, allocator.reserved) == (120 * MIB, 140 * MIB)
    allocator.allocate(7, 20 * MIB)
    assert allocator.reserved == 140 * MIB


def test_a_gap_and_what_is_free_around_it_become_one_block() -> None:
    log = [*allocations(15 * MIB, 30 * MIB, 35 * MIB), (-2, 0), (4, 40 * MIB)]
    allocator = replay(log, expandable=True, capacity=100 * MIB)
    assert allocator.reserved == 100 * MIB  # unmapped: the page from 20 to 40 MiB; free: 5 MiB on each side of it
    allocator.capacity = None
    allocator.allocate(5, 30 * MIB)
    assert (allocator.allocated, allocator.reserved) == (120 * MIB, 120 * MIB)


def test_of_a_gap_only_the_pages_that_are_needed_are_mapped() -> None:
    log = [*allocations(15 * MIB, 50 * MIB, 15 * MIB), (-2, 0), (4, 60 * MIB)]
    allocator = replay(log, expandable=True, capacity=120 * MIB)
    assert allocator.reserved == 100 * MIB  # unmapped: two pages from 20 to 60 MiB; free: 5 MiB on each side of them
    allocator.capacity = None
    allocator.allocate(5, 20 * MIB)
    assert allocator.reserved == 120 * MIB


def test_numbers_that_are_wrong_are_refused() -> None:
    with pytest.raises(KeyError):
        replay([(-1, 0)])
    with pytest.raises(KeyError):
        replay([(1, 512), (-1, 0), (-1, 0)])
    with pytest.raises(ValueError, match="block 1 is allocated already"):
        replay([(1, 512), (1, 512)])


def test_a_training_step_by_hand() -> None:
    """A small layer, twice forward and backward; each line's reserved MiB follow from the source's rules."""
    allocator = CachingAllocator()
    reserved = []
    for block, size in [
        (1, 32 * MIB),  # a weight: a segment of its own, 32
        (2, 4096),  # a norm's weight: 2 of the small pool
        (3, 8 * MIB),  # activations: a segment of 20, 12 left
        (4, 11 * MIB),  # fits those 12, and the remainder of 1 MiB stays with it
        (5, 3 * MIB),  # nothing left: 20 more, 17 left
        (-4, 0),  # 12 MiB are free in one piece again
        (6, 16 * MIB),  # fits the 17 left behind block 5, remainder and all
        (-3, 0),  # the first segment is 20 MiB free
        (7, 22 * MIB),  # a gradient: a segment of its own
        (8, 19 * MIB),  # takes the first segment whole
    ]:
        if block > 0:
            allocator.allocate(block, size)
        else:
            allocator.free(-block)
        reserved.append(allocator.reserved // MIB)
    assert reserved == [32, 34, 54, 54, 74, 74, 74, 74, 96, 96]
    assert allocator.allocated == (32 + 3 + 17 + 22 + 20) * MIB + 4096
    assert allocator.unallocated == 2 * MIB - 4096
    assert allocator.peak_allocated == allocator.allocated


def test_the_least_capacity_of_a_log_that_must_give_back_its_cache() -> None:
    log = [*allocations(12 * MIB), (-1, 0), (2, 14 * MIB), (-2, 0), (3, 16 * MIB)]
    assert replay(log).peak_reserved == 42 * MIB
    assert smallest_capacity(log) == 16 * MIB
    assert smallest_capacity(log, expandable=True) == 20 * MIB
    assert smallest_capacity([]) == 0
    assert smallest_capacity([(1, 0)]) == 0
