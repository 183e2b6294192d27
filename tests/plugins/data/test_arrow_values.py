"""What a row does not have is not there, at any depth, whatever Arrow keeps of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fitune import DataError
from fitune_plugins.data import formats
from fitune_plugins.data.sources import hf_dataset, parquet
from fitune_plugins.data.sources.arrow_values import given_by
from support.sources import opened, problems, read, stage


def called(name: str, **arguments: Any) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    schema = {"type": "object", "properties": {key: {"type": "string", key: "its own"} for key in arguments}}
    return {"messages": messages, "tools": [{"type": "function", "function": {"name": name, "parameters": schema}}]}


ROWS = [
    called("weather", city="Rome", days=[{"day": 1}, {"night": 2}]),
    called("clock", zone="CET", at={"hour": 3}),
    called("noise", at={"minute": {"exact": True}}),
    called("nothing"),
]
"""Their union has every key in every row; the last has a call without arguments."""


def as_parquet(path: Path) -> list[dict[str, Any]]:
    pq.write_table(pa.Table.from_pylist(ROWS), path / "a.parquet")
    return [dict(row.values) for row in read(parquet, path / "a.parquet")]


def from_the_hub(path: Path, *, streaming: bool) -> list[dict[str, Any]]:
    (path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS), path / "data" / "a.parquet")
    return [dict(row.values) for row in read(hf_dataset, str(path / "data"), streaming=streaming)]


def of_disk(path: Path, *, streaming: bool) -> list[dict[str, Any]]:
    datasets.Dataset.from_list(ROWS).save_to_disk(path / "saved")
    return [dict(row.values) for row in read(hf_dataset, str(path / "saved"), streaming=streaming)]


SOURCES: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    "parquet": as_parquet,
    "hub": partial(from_the_hub, streaming=False),
    "stream": partial(from_the_hub, streaming=True),
    "disk": partial(of_disk, streaming=False),
    "stream of disk": partial(of_disk, streaming=True),
}


@pytest.mark.parametrize("source", SOURCES)
def test_rows_come_as_they_were_put_in(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert SOURCES[source](tmp_path) == ROWS


def test_what_save_to_disk_has_written(tmp_path: Path) -> None:
    one, other = (datasets.Dataset.from_list([{"n": n} for n in numbers]) for numbers in (range(3), range(2)))
    datasets.DatasetDict(train=one, test=other).save_to_disk(tmp_path / "splits")
    one.save_to_disk(tmp_path / "one")
    assert [row.values["n"] for row in read(hf_dataset, tmp_path / "splits", limit=2)] == [0, 1]
    assert [row.values["n"] for row in read(hf_dataset, tmp_path / "splits", split="test")] == [0, 1]
    assert [row.values["n"] for row in read(hf_dataset, tmp_path / "one")] == [0, 1, 2]
    with pytest.raises(DataError, match=r'has no split "tset"\. Did you mean "test"\?$'):
        list(read(hf_dataset, tmp_path / "splits", split="tset"))
    with pytest.raises(DataError, match=r'has no split "test"\. '):
        list(read(hf_dataset, tmp_path / "one", split="test"))
    assert problems(hf_dataset, tmp_path / "one", split="train[:2]", config="main") == [
        "split: a slice of a split cannot be read of what save_to_disk wrote. Name the split alone, and set: limit",
        "config: what save_to_disk wrote has no configurations. Leave it out",
    ]
    find = stage(hf_dataset).fingerprint
    assert find is not None
    before = find(opened(hf_dataset, tmp_path / "one"))
    assert before == find(opened(hf_dataset, tmp_path / "one"))
    file = next((tmp_path / "one").glob("*.arrow"))
    os.utime(file, ns=(0, 0))  # it may have been written anew, under the fingerprint that stands beside it
    assert find(opened(hf_dataset, tmp_path / "one")) != before


def test_what_a_template_gets(tmp_path: Path) -> None:
    as_parquet(tmp_path)
    talks = [formats.read_messages(formats.MessagesOptions(), row) for row in read(parquet, tmp_path)]
    written = [talk.messages[1]["tool_calls"][0]["function"]["arguments"].written for talk in talks]
    assert written == [
        '{"city": "Rome", "days": [{"day": 1}, {"night": 2}]}',
        '{"zone": "CET", "at": {"hour": 3}}',
        '{"at": {"minute": {"exact": true}}}',
        "{}",
    ]
    assert [set(talk.tools[0]["function"]["parameters"]["properties"]) for talk in talks] == [
        {"city", "days"}, {"zone", "at"}, {"at"}, set()
    ]  # fmt: skip


def test_a_column_stays_and_so_do_nulls_in_lists_and_maps() -> None:
    pairs = pa.map_(pa.string(), pa.struct({"x": pa.int64(), "y": pa.int64()}))
    schema = pa.schema({"column": pa.struct({"a": pa.int64()}), "list": pa.list_(pa.int64()), "map": pairs})
    rows: list[dict[str, Any]] = [
        {"column": None, "list": [1, None], "map": {"a": None, "b": {"x": 1, "y": None}}},
        {"column": {"a": None}, "list": None, "map": None},
    ]
    table = pa.Table.from_pylist([{**row, "map": row["map"] and list(row["map"].items())} for row in rows], schema)
    given = given_by(schema)
    assert [given(row) for row in table.to_pylist(maps_as_pydicts="strict")] == [
        {"column": None, "list": [1, None], "map": {"a": None, "b": {"x": 1}}},
        {"column": {}, "list": None, "map": None},
    ]


def test_large_and_fixed_lists() -> None:
    inner = pa.struct({"a": pa.int64(), "b": pa.int64()})
    schema = pa.schema({"large": pa.large_list(inner), "fixed": pa.list_(inner, 1)})
    given = given_by(schema)
    assert given({"large": [{"a": 1, "b": None}], "fixed": [{"a": None, "b": 2}]}) == {
        "large": [{"a": 1}], "fixed": [{"b": 2}]
    }  # fmt: skip


def test_values_that_a_library_kept_as_json_are_the_rows_own() -> None:
    schema = datasets.Features({"call": {"name": datasets.Value("string"), "arguments": datasets.Json()}}).arrow_schema
    row = {"call": {"name": None, "arguments": {"zone": None}}}
    assert given_by(schema)(row) == {"call": {"arguments": {"zone": None}}}


def test_rows_without_a_schema() -> None:
    assert given_by(None)({"column": None, "a": [{"b": None, "c": {"d": None}}]}) == {"column": None, "a": [{"c": {}}]}
