"""Prepared rows on disk: equal to those written, and never all in memory."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitune import IGNORED, Example, Origin
from fitune.data import cache_writer
from fitune.data.cache import Rows, build_or_open
from fitune.data.cache_writer import ROWS_IN_BATCH, Writer
from support.examples import example, plain


def stored(number: int, tmp_path: Path) -> Rows:
    writer = Writer(tmp_path / "rows.arrow")
    assert writer.write(example(n) for n in range(number)) == number
    (tmp_path / "meta.json").write_text(json.dumps({"files": list(writer.files)}), encoding="utf-8")
    return Rows(tmp_path)


@st.composite
def examples(draw: st.DrawFn) -> Example:
    lengths = draw(st.lists(st.integers(1, 5), max_size=4))
    tokens = sum(lengths) or draw(st.integers(1, 9))
    numbers = st.integers(0, 2**31 - 1)
    ids = np.array(draw(st.lists(numbers, min_size=tokens, max_size=tokens)), dtype=np.int32)
    trained = np.array(draw(st.lists(st.booleans(), min_size=tokens, max_size=tokens)))
    origin = Origin(file=draw(st.sampled_from(["a", "b/ü.jsonl", "c d"])), row=draw(st.integers(1, 2**40)))
    return Example(
        input_ids=ids, labels=np.where(trained, ids, IGNORED).astype(np.int32), origin=origin, lengths=tuple(lengths)
    )


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.lists(examples(), max_size=12))
def test_rows_read_back_as_they_were_written(written: list[Example]) -> None:
    def build(writer: Writer) -> Mapping[str, Any]:
        return {"rows": writer.write(written)}

    rows, _ = build_or_open(None, build)
    assert rows.meta["rows"] == len(rows) == len(written)
    assert list(map(plain, rows)) == list(map(plain, written))
    assert all(row.input_ids.dtype == row.labels.dtype == np.int32 for row in rows)


def test_rows_are_found_across_the_borders_of_batches(tmp_path: Path) -> None:
    rows = stored(2 * ROWS_IN_BATCH + 5, tmp_path)
    for at in (0, 1, 1023, 1024, 1025, 2047, 2048, 2052, -1, -5, -6, -2053):
        assert rows[at].origin.row == (at % len(rows)) + 1
        assert rows[np.int64(at)].input_ids.tolist() == [at % len(rows)] * 3
    assert [row.origin.row for row in rows[1022:1027]] == [1023, 1024, 1025, 1026, 1027]
    assert [row.origin.row for row in rows[::-1024]] == [2053, 1029, 5]
    assert rows[5:5] == []
    assert [row.origin.row for row in rows] == list(range(1, len(rows) + 1))


@pytest.mark.parametrize("at", [3, 100, -4])
def test_a_row_that_there_is_not(at: int, tmp_path: Path) -> None:
    with pytest.raises(IndexError):
        stored(3, tmp_path)[at]


def test_no_rows_at_all(tmp_path: Path) -> None:
    rows = stored(0, tmp_path)
    assert len(rows) == 0
    assert list(rows) == []
    with pytest.raises(IndexError):
        rows[0]


def test_batches_end_early_where_rows_are_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_writer, "TOKENS_IN_BATCH", 10)
    rows = stored(23, tmp_path)
    assert [row.origin.row for row in rows] == list(range(1, 24))
    assert rows[-1].input_ids.tolist() == [22] * 3


def test_nobody_writes_into_the_cache(tmp_path: Path) -> None:
    rows = stored(2, tmp_path)
    rows[1].input_ids[:] = 9
    rows[1].labels[:] = 9
    assert rows[1].input_ids.tolist() == rows[1].labels.tolist() == [1, 1, 1]


def test_neither_writing_nor_reading_holds_all_rows(tmp_path: Path) -> None:
    """40 MB of tokens; a record batch is 2 MB of them, and the writer may hold it in a few forms."""

    def rows() -> Iterator[Example]:
        for number in range(20_000):
            yield example(number, 256)

    tracemalloc.start()
    try:
        writer = Writer(tmp_path / "rows.arrow")
        writer.write(rows())
        writing = tracemalloc.get_traced_memory()[1]
        (tmp_path / "meta.json").write_text(json.dumps({"files": list(writer.files)}), encoding="utf-8")
        tracemalloc.reset_peak()
        assert sum(len(row.input_ids) for row in Rows(tmp_path)) == 20_000 * 256
        reading = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "rows.arrow").stat().st_size > 40_000_000
    assert writing < 12_000_000
    assert reading < 1_000_000
