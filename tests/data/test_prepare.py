"""Preparing data: what is counted, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from fitune import DataContext, DataStage, Example, NoOptions, Row, hookimpl
from fitune.errors import DataError
from support.counted import CHAIN, Counted
from support.prepared import numbered, origins, prepared, turns, write

LONG = turns("?" * 99, "1")
"""A row whose answer does not fit into 64 tokens."""


# ------------------------------------------------------------------------------------------------------------ counts


def test_what_each_stage_gave_is_told_in_order(tmp_path: Path) -> None:
    data = prepared(write(tmp_path, numbered(30) + LONG))
    assert data.flow == [
        ("jsonl", 31),
        ("detect", 31),
        ("chat", 31),
        ("tokenize", 31),
        ("truncate", 30),
    ]
    assert data.notes == [
        ("rows read as messages", 31),
        ("rows cut at the right", 1),
        ("rows left out: no token to train on", 1),
    ]
    assert origins(data) == list(range(1, 31))


def test_lengths_are_those_before_any_was_cut(tmp_path: Path) -> None:
    data = prepared(write(tmp_path, turns("1?", "1") + turns("1?", "1" * 60)))
    short, long = sorted(data.lengths)
    assert long == short + 59 > 64
    assert dict(data.lengths) == {short: 1, long: 1}
    assert [len(example.input_ids) for example in data.rows] == [short, 64]


def test_the_highest_token_is_kept(tmp_path: Path) -> None:
    assert prepared(write(tmp_path, numbered(3))).highest == 257


def test_a_source_that_stands_twice_is_counted_twice(tmp_path: Path) -> None:
    path = write(tmp_path, numbered(3))
    twice = (
        f'data.source=[{{use="jsonl", path="{tmp_path}/data.jsonl"}}, {{use="jsonl", path="{tmp_path}/data.jsonl"}}]'
    )
    data = prepared(path, twice)
    assert data.flow[:3] == [("jsonl", 3), ("jsonl'", 3), ("detect", 6)]


# ------------------------------------------------------------------------------------------------------------ guards


def test_too_many_rows_without_a_target_are_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, numbered(9) + LONG)
    with pytest.raises(DataError) as error:
        prepared(path, "data.max_empty=0.099")
    assert error.value.message.startswith("training data: 1 of 10 rows have no token to train on, more than")
    assert len(prepared(path, "data.max_empty=0.1").rows) == 9


def test_packed_data_are_guarded_document_by_document(tmp_path: Path) -> None:
    path = write(tmp_path, numbered(9) + LONG)
    with pytest.raises(DataError, match="1 of 10 rows have no token to train on"):
        prepared(path, f'data.stage=[{CHAIN}, {{use="pack"}}]', "train.length=64", "data.max_empty=0.05")
    data = prepared(path, f'data.stage=[{CHAIN}, {{use="pack"}}]', "data.max_empty=0.1")
    assert sum(max(1, len(row.lengths)) for row in data.rows) == 9


def test_pieces_of_a_row_are_not_counted_as_rows(tmp_path: Path) -> None:
    """Of a row in 100 pieces, 99 have no target: the row has one."""
    path = write(tmp_path, "".join(turns("?" * 6000, "a") for _ in range(2)))
    split = f'data.stage=[{CHAIN[: CHAIN.rindex("{")]}{{use="truncate", policy="split"}}]'
    data = prepared(path, split)
    assert origins(data) == [1, 2]
    pieces = dict(data.notes)["pieces of rows left out: no token to train on"]
    assert pieces > 150
    with pytest.raises(DataError, match="1 of 2 rows have no token to train on"):
        prepared(write(tmp_path, turns("?" * 6000, "") + turns("?", "a")), split)


def test_a_file_of_empty_answers_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "".join(turns(f"{n}?", "") for n in range(20)))
    with pytest.raises(DataError) as error:
        prepared(path)
    assert error.value.message == (
        "no row is left to train on (rows read as messages: 20; answers not trained on: empty: 20; "
        "rows left out: no token to train on: 20)"
    )


def test_rows_that_leave_themselves_out_are_no_fault(tmp_path: Path) -> None:
    rows = [{**json.loads(turns(f"{n}?", f"{n}")), "weight": n % 2} for n in range(10)]
    data = prepared(write(tmp_path, "".join(json.dumps(row) + "\n" for row in rows)))
    assert origins(data) == [2, 4, 6, 8, 10]
    assert dict(data.notes)["rows left out: they say themselves that nothing of them is trained on"] == 5


def test_a_row_over_the_length_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, numbered(1) + turns("2?", "2" * 60))
    with pytest.raises(DataError) as error:
        prepared(path, 'data.stage=[{use="messages"}, {use="chat"}, {use="tokenize"}, {use="pad"}]')
    assert error.value.message.startswith(f"{tmp_path / 'data.jsonl'}:2: ")
    assert "over [train] length = 64. Put the [[data.stage]] that cuts rows behind" in error.value.message


@pytest.mark.parametrize("where", ["file", "conversation"])
def test_bad_rows_stop_the_run_or_are_counted(where: str, tmp_path: Path) -> None:
    bad = "{'a'}\n" if where == "file" else '{"messages": [{"role": "user", "content": 1}]}\n'
    path = write(tmp_path, numbered(2) + bad + numbered(2) + bad)
    with pytest.raises(DataError) as error:
        prepared(path)
    assert error.value.message.startswith(f"{tmp_path / 'data.jsonl'}:3: ")
    data = prepared(path, 'data.bad_rows="skip"')
    assert ("bad rows skipped", 2) in data.notes
    assert origins(data) == [1, 2, 4, 5]


def test_data_that_change_while_they_are_read_are_not_kept(tmp_path: Path) -> None:
    path = write(tmp_path, numbered(3))

    class Changing(Counted):
        @hookimpl
        def ft_data_stages(self) -> Iterable[DataStage[NoOptions]]:
            """A stage that meddles with the source."""

            def make(options: NoOptions, context: DataContext) -> Callable[[Iterator[Row]], Iterator[Row]]:
                def rows(stream: Iterator[Row]) -> Iterator[Row]:
                    yield from stream
                    (tmp_path / "data.jsonl").write_text(numbered(4), encoding="utf-8")

                return rows

            yield DataStage(name="meddle", summary="-", options=NoOptions, takes="rows", gives="rows", make=make)

    with pytest.raises(DataError) as error:
        prepared(path, 'data.stage=[{use="meddle"}, {use="chat"}]', plugins=[Changing()])
    assert error.value.message == (
        "the training data changed while they were read. Start again once they stay as they are"
    )
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_stage_that_fails_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    class Fails:
        @hookimpl
        def ft_data_stages(self) -> Iterable[DataStage[NoOptions]]:
            """A stage that fails at the third row."""

            def make(options: NoOptions, context: DataContext) -> Callable[[Iterator[Example]], Iterator[Example]]:
                def stage(stream: Iterator[Example]) -> Iterator[Example]:
                    for number, example in enumerate(stream):
                        if number == 2:
                            raise ValueError("no third")
                        yield example

                return stage

            yield DataStage(name="fails", summary="-", options=NoOptions, takes="rows", gives="rows", make=make)

    with pytest.raises(
        Exception, match=r'data stage "fails" failed: ValueError: no third \(data/test_prepare.py:\d+\)'
    ):
        prepared(write(tmp_path, numbered(5)), 'data.stage=[{use="fails"}, {use="chat"}]', plugins=[Fails()])
    assert list((tmp_path / "cache").iterdir()) == []
