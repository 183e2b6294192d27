"""Which rows are taken: by weight, and by the side of the held-out split; by seed, position and content alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitune import Conversation, Origin, Row
from fitune.data.split import Part, split_of, weighted

COUNT = 2000


def side(rows: Iterator[Any], part: Part, fraction: float, seed: int) -> Iterator[Any]:
    """By the rule that looks at each row by itself, which runs of before 0.2 go on with."""
    return split_of(part, "by_row", [], fraction, seed)(rows)


def _taken(weight: float, seed: int = 42, count: int = COUNT) -> list[int]:
    return list(weighted(lambda: iter(range(count)), weight, seed))


def row(number: int, file: str = "a", at: int = 1) -> Row:
    return Row(values={"text": f"row {number}", "n": number}, origin=Origin(file=file, row=at))


ROWS = [row(number, at=number + 1) for number in range(COUNT)]


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.9])
def test_a_part_is_about_so_large_and_in_order(weight: float) -> None:
    taken = _taken(weight)
    assert taken == sorted(set(taken))
    assert abs(len(taken) - weight * COUNT) < 4 * (COUNT * weight * (1 - weight)) ** 0.5  # four standard deviations


def test_whole_passes_come_one_after_the_other() -> None:
    assert _taken(1, count=3) == [0, 1, 2]
    assert _taken(3, count=2) == [0, 1, 0, 1, 0, 1]
    taken = _taken(2.5)
    assert taken[: 2 * COUNT] == [*range(COUNT)] * 2
    assert taken[2 * COUNT :] == _taken(0.5)


def test_whole_passes_do_not_depend_on_the_seed_and_parts_do() -> None:
    assert _taken(2, seed=1) == _taken(2, seed=2)
    assert _taken(0.5, seed=1) == _taken(0.5, seed=1)
    assert _taken(0.5, seed=1) != _taken(0.5, seed=2)


def test_a_larger_part_holds_a_smaller_one() -> None:
    """A position is in it or not by one number: more weight adds rows, and takes none away."""
    assert set(_taken(0.2)) < set(_taken(0.6))


def test_a_source_is_read_anew_for_each_pass_and_only_when_it_is_due() -> None:
    begun = 0

    def read() -> Iterator[int]:
        nonlocal begun
        begun += 1
        yield from range(2)

    stream = weighted(read, 1.5, 42)
    assert begun == 0
    assert next(stream) == 0
    assert begun == 1
    list(stream)
    assert begun == 2


def test_of_nothing_nothing_is_taken() -> None:
    assert _taken(2.5, count=0) == []
    assert list(side(iter([]), "train", 0.5, 42)) == []


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 30), max_size=40), st.floats(0, 1), st.integers(0, 2**32))
def test_each_row_is_on_one_side(numbers: list[int], fraction: float, seed: int) -> None:
    rows = [row(number, at=at) for at, number in enumerate(numbers, 1)]
    train, held = list(side(iter(rows), "train", fraction, seed)), list(side(iter(rows), "held out", fraction, seed))
    assert list(side(iter(rows), "all", fraction, seed)) == rows
    assert sorted((*train, *held), key=lambda one: one.origin.row) == rows
    assert not {one.values["n"] for one in train} & {one.values["n"] for one in held}  # equal rows stay together


@pytest.mark.parametrize("fraction", [0.05, 0.5])
def test_a_side_is_about_so_large(fraction: float) -> None:
    held = list(side(iter(ROWS), "held out", fraction, 42))
    assert abs(len(held) - fraction * COUNT) < 4 * (COUNT * fraction * (1 - fraction)) ** 0.5
    assert held == sorted(held, key=lambda one: one.origin.row)


def test_the_ends_of_the_fraction() -> None:
    assert list(side(iter(ROWS), "held out", 0, 42)) == []
    assert list(side(iter(ROWS), "held out", 1, 42)) == ROWS


def test_where_a_row_stands_does_not_count() -> None:
    held = {one.values["n"] for one in side(iter(ROWS), "held out", 0.3, 42)}
    moved = [row(one.values["n"], file="elsewhere", at=COUNT - at) for at, one in enumerate(reversed(ROWS))]
    assert {one.values["n"] for one in side(iter(moved), "held out", 0.3, 42)} == held
    assert {one.values["n"] for one in side(iter(ROWS), "held out", 0.3, 43)} != held


def test_the_order_of_keys_does_not_count_and_every_value_does() -> None:
    def side_of(*values: dict[str, object]) -> list[bool]:
        rows = [Row(values=one, origin=Origin(file="f", row=1)) for one in values]
        return [bool(list(side(iter([one]), "held out", 0.5, 42))) for one in rows]

    pairs = [({"a": n, "b": "x"}, {"b": "x", "a": n}) for n in range(50)]
    assert all(side_of(*pair) == side_of(*reversed(pair)) for pair in pairs)
    assert {side_of({"a": n, "b": "x"}, {"a": n, "b": "y"}) == [False, True] for n in range(50)} == {True, False}


def test_conversations_are_known_by_their_messages() -> None:
    said = [
        Conversation(messages=({"role": "user", "content": str(n)},), origin=Origin(file="f", row=n + 1))
        for n in range(200)
    ]
    held = [one.messages for one in side(iter(said), "held out", 0.5, 42)]
    other = [replace(one, origin=Origin(file="g", row=1)) for one in said]
    assert [one.messages for one in side(iter(other), "held out", 0.5, 42)] == held
    assert 60 < len(held) < 140


def test_another_process_takes_the_same_rows() -> None:
    """Python's own hash of strings differs from process to process."""
    code = "from fitune.data.split import weighted; print(list(weighted(lambda: iter(range(50)), 0.5, 7)))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == str(_taken(0.5, seed=7, count=50))


def test_what_is_taken_stays_what_it_is() -> None:
    """As release 0.1 takes them: a run that goes on, and prepared data, have the rows that they had."""
    assert _taken(0.3, count=20) == [0, 2, 5, 18, 19]
    assert [one.values["n"] for one in side(iter(ROWS[:20]), "held out", 0.3, 42)] == [4, 12, 13, 18, 19]
