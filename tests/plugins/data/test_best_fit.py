"""Best-fit-decreasing: every document once, no row too full, as few rows as the algorithm promises."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitune_plugins.data.best_fit import best_fit

CAPACITY = 20
LENGTHS = st.lists(st.integers(1, CAPACITY), max_size=60)


def pack(lengths: Sequence[int], capacity: int = CAPACITY) -> list[list[int]]:
    return best_fit(np.array(lengths, dtype=np.int64), capacity)


def naive(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """By looking at every row for every document."""
    rows: list[list[int]] = []
    spaces: list[int] = []
    since: list[int] = []
    for time, document in enumerate(sorted(range(len(lengths)), key=lambda d: -lengths[d])):
        fitting = [row for row in range(len(rows)) if spaces[row] >= lengths[document]]
        if fitting:
            row = min(fitting, key=lambda row: (spaces[row], since[row]))
        else:
            row = len(rows)
            rows.append([])
            spaces.append(capacity)
            since.append(time)
        rows[row].append(document)
        spaces[row] -= lengths[document]
        since[row] = time
    return rows


def first_fit(lengths: Sequence[int], capacity: int) -> int:
    """Rows that first fit needs, in the order given."""
    spaces: list[int] = []
    for length in lengths:
        row = next((row for row, space in enumerate(spaces) if space >= length), None)
        if row is None:
            spaces.append(capacity - length)
        else:
            spaces[row] -= length
    return len(spaces)


def fewest(lengths: Sequence[int], capacity: int) -> int:
    """The fewest rows of all packings, by trying them."""

    @cache
    def rows(left: tuple[int, ...], space: int) -> int:
        if not left:
            return 0
        options = [1 + rows(left[1:], capacity - left[0])]  # the longest that is left opens the next row
        for at, length in enumerate(left):
            if length <= space and (at == 0 or left[at - 1] != length):
                options.append(rows(left[:at] + left[at + 1 :], space - length))
        return min(options)

    return rows(tuple(sorted(lengths, reverse=True)), 0)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(LENGTHS)
def test_every_document_once_and_no_row_too_full(lengths: list[int]) -> None:
    rows = pack(lengths)
    assert sorted(document for row in rows for document in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[document] for document in row) <= CAPACITY for row in rows)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(LENGTHS)
def test_same_as_a_naive_search(lengths: list[int]) -> None:
    assert pack(lengths) == naive(lengths, CAPACITY)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(LENGTHS)
def test_bounds_that_need_no_optimum(lengths: list[int]) -> None:
    """11/9 of the optimum and 4, and the optimum is under first fit; at most one row is half empty."""
    rows = pack(lengths)
    assert len(rows) <= Fraction(11, 9) * first_fit(lengths, CAPACITY) + 4
    assert sum(2 * sum(lengths[document] for document in row) <= CAPACITY for row in rows) <= 1


@settings(derandomize=True, max_examples=50, deadline=None)
@given(st.lists(st.integers(1, CAPACITY), max_size=9))
def test_close_to_the_optimum(lengths: list[int]) -> None:
    """Within 11/9 of the optimum and 1, which for so few documents is the optimum or one row more."""
    assert len(pack(lengths)) <= Fraction(11, 9) * fewest(lengths, CAPACITY) + 1


def test_no_more_rows_than_first_fit_on_uneven_documents() -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(4, 1, 2000).astype(np.int64), 1, 512)
    rows = best_fit(lengths, 512)
    assert len(rows) <= first_fit(lengths.tolist(), 512)
    assert lengths.sum() / (len(rows) * 512) > 0.99


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([], []),
        ([20], [[0]]),
        ([1, 20, 19], [[1], [2, 0]]),
        ([10, 10, 10], [[0, 1], [2]]),
        ([12, 6, 14, 8], [[2, 1], [0, 3]]),
        ([5, 12, 15, 3], [[2, 0], [1, 3]]),
        ([7, 12, 11, 8], [[1, 3], [2, 0]]),
    ],
)
def test_known_packings(lengths: list[int], expected: list[list[int]]) -> None:
    assert pack(lengths) == expected


@pytest.mark.parametrize("lengths", [[0], [3, 21], [-1]])
def test_lengths_that_cannot_be(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="from 1 to 20"):
        pack(lengths)
