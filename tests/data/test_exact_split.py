"""`[eval] split = "exact"`: as many rows as the share, of each source, and equal rows on one side."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitune import Origin, Row
from fitune.data.split import Part, Split, split_of

Sources = Sequence[Sequence[int]]


def rows(numbers: Sequence[int]) -> list[Row]:
    """Equal numbers make equal rows."""
    return [Row(values={"n": number}, origin=Origin(file="f", row=at)) for at, number in enumerate(numbers, 1)]


def parted(sources: Sources, fraction: float, seed: int = 42, part: Part = "held out") -> tuple[Split, list[list[int]]]:
    split = split_of(part, "exact", (iter(rows(one)) for one in sources), fraction, seed)
    return split, [[row.values["n"] for row in split(iter(rows(one)))] for one in sources]


def held(sources: Sources, fraction: float, seed: int = 42) -> list[list[int]]:
    return parted(sources, fraction, seed)[1]


def test_fifteen_of_forty_at_three_eighths() -> None:
    split, found = parted([range(40)], 0.375)
    assert len(found[0]) == 15
    assert [(one.held_out, one.rows, one.asked) for one in split.shares] == [(15, 40, 15)]


def test_of_each_source_its_share_and_of_all_theirs() -> None:
    """3.75 of each is rounded so that the sum is 15."""
    found = held([range(at, at + 10) for at in (0, 100, 200, 300)], 0.375)
    assert [len(one) for one in found] == [4, 4, 3, 4]
    assert [len(one) for one in held([range(32), range(100, 108)], 0.375)] == [12, 3]


def test_sides_are_apart_and_together_all_in_their_order() -> None:
    sources = [range(30), range(100, 145)]
    for kept, trained, source in zip(held(sources, 0.3), parted(sources, 0.3, part="train")[1], sources, strict=True):
        assert sorted([*kept, *trained]) == list(source)
        assert kept == sorted(kept)
        assert trained == sorted(trained)


def test_the_seed_picks_and_the_order_does_not() -> None:
    assert held([range(100)], 0.3) != held([range(100)], 0.3, seed=43)
    assert set(held([range(100)], 0.3)[0]) == set(held([list(reversed(range(100)))], 0.3)[0])


def test_a_larger_share_holds_a_smaller_one() -> None:
    assert set(held([range(200)], 0.1)[0]) < set(held([range(200)], 0.3)[0])


def test_rows_that_are_added_move_few() -> None:
    before, after = set(held([range(1000)], 0.1)[0]), set(held([range(1100)], 0.1)[0])
    assert len({number for number in after if number < 1000} ^ before) < 15


def test_equal_rows_stay_on_one_side_in_and_over_sources() -> None:
    sources = [[*range(20), *range(20)], list(range(10, 40))]
    kept, trained = held(sources, 0.25), parted(sources, 0.25, part="train")[1]
    assert not {n for one in kept for n in one} & {n for one in trained for n in one}
    assert [len(one) for one in kept] == [10, 8]  # 17.5 of 70, rounded up
    assert set(Counter(kept[0]).values()) == {2}


@pytest.mark.parametrize(
    ("numbers", "fraction", "sizes"),
    [
        ([1] * 10, 0.3, (0, 3)),  # all or nothing: nothing is nearer
        ([1] * 10, 0.6, (10, 6)),
        ([1, 1, 2, 2, 3, 3], 0.5, (4, 3)),
        ([1] * 9 + [2], 0.1, (1, 1)),  # those that hold too many are passed over, whatever their rank
    ],
)
def test_where_equal_rows_leave_no_exact_share_it_is_near_and_told(
    numbers: list[int], fraction: float, sizes: tuple[int, int]
) -> None:
    split, (found,) = parted([numbers], fraction)
    assert (len(found), split.shares[0].asked) == sizes
    assert split.shares[0].held_out == len(found)


def test_a_source_whose_rows_another_holds_out_counts_these() -> None:
    split, found = parted([range(40), held([range(40)], 0.5)[0]], 0.5)
    assert [len(one) for one in found] == [20, 20]
    assert [one.asked for one in split.shares] == [20, 10]


@pytest.mark.parametrize("sources", [[], [[]], [[], [1, 2, 3], []]])
def test_sources_may_be_empty(sources: list[list[int]]) -> None:
    assert sum(map(len, held(sources, 0.34))) == (1 if any(sources) else 0)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.integers(0, 500), unique=True, max_size=40), max_size=4),
    st.floats(0.01, 0.99),
    st.integers(0, 2**32),
)
def test_of_rows_that_differ_the_share_is_exact(numbers: list[list[int]], fraction: float, seed: int) -> None:
    sources = [[1000 * at + number for number in one] for at, one in enumerate(numbers)]
    found = held(sources, fraction, seed)
    assert sum(map(len, found)) == math.floor(Fraction(repr(fraction)) * sum(map(len, sources)) + Fraction(1, 2))
    assert all(abs(len(one) - fraction * len(source)) < 1 for one, source in zip(found, sources, strict=True))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.lists(st.integers(0, 12), max_size=40), max_size=3), st.floats(0.01, 0.99))
def test_no_row_is_on_both_sides(sources: list[list[int]], fraction: float) -> None:
    kept, trained = held(sources, fraction), parted(sources, fraction, part="train")[1]
    assert not {n for one in kept for n in one} & {n for one in trained for n in one}
    assert [len(one) + len(other) for one, other in zip(kept, trained, strict=True)] == list(map(len, sources))
