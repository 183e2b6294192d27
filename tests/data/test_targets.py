"""Rows without a token to train on are counted by the rows that they were, whatever became of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from fitune import IGNORED, Example, Origin
from fitune.data.targets import EMPTY, EMPTY_PIECES, Taken, with_targets


def example(row: int, *targets: int) -> Example:
    """A row whose tokens after the first are trained on where there is a one."""
    labels = np.array([IGNORED, *(7 if target else IGNORED for target in targets)], dtype=np.int32)
    return Example(
        input_ids=np.full(len(labels), 7, dtype=np.int32), labels=labels, origin=Origin(file="data.jsonl", row=row)
    )


def passed(*given: Example, size: int = 2) -> tuple[list[int], Counter[str]]:
    """The rows that are left of what a stage splits into pieces of `size` tokens, and the notes."""
    taken, notes = Taken(iter(given)), Counter[str]()

    def split() -> Iterator[Example]:
        for one in taken:
            for at in range(0, len(one.input_ids), size):
                part = slice(at, at + size)
                yield Example(input_ids=one.input_ids[part], labels=one.labels[part], origin=one.origin)

    return [one.origin.row for one in with_targets(split(), taken, notes)], notes


@pytest.mark.parametrize(
    ("given", "left", "empty", "pieces"),
    [
        ([example(1, 1), example(2, 1)], [1, 2], 0, 0),
        ([example(1, 0), example(2, 1)], [2], 1, 0),
        ([example(1, 0, 0, 0, 0, 1), example(2, 1)], [1, 2], 0, 2),
        ([example(1, 0, 0, 0, 0, 0), example(2, 1)], [2], 1, 0),
        ([example(1, 1, 0, 0, 0, 1)], [1, 1], 0, 1),
        ([example(1, 0, 0, 0), example(1, 0, 0, 0)], [], 2, 0),  # one row of a file, taken twice
        ([], [], 0, 0),
    ],
)
def test_rows_are_counted(given: list[Example], left: list[int], empty: int, pieces: int) -> None:
    assert passed(*given) == (left, Counter({EMPTY: empty, EMPTY_PIECES: pieces}))


def test_a_stage_that_takes_all_before_it_gives_any() -> None:
    given = [example(1, 0, 0), example(2, 1), example(3, 0)]
    taken, notes = Taken(iter(given)), Counter[str]()
    assert [one.origin.row for one in with_targets(iter(list(taken)), taken, notes)] == [2]
    assert notes == Counter({EMPTY: 2})
