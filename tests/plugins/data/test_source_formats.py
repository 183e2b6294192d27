"""The sources of data, format by format: what rows come of what is written."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given, settings, strategies

from fitune.errors import DataError
from fitune.plugin.dataflow import Row
from fitune_plugins.data.sources import csv_file, hf_dataset, json_file, jsonl, parquet, txt
from support.sources import opened, problems, read, stage, values


def test_jsonl_takes_what_json_takes(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(
        b'\xef\xbb\xbf{"n": [1, -0.5, 1e3, 12345678901234567890], "deep": {"a": [null, true, {"b": []}]}}\r\n'
        b"\n  \t\r\n"
        b'  {"text": "\\u0000 \\ud83d\\ude00 \xe2\x80\xa8"}  \n' + json.dumps({"long": "x" * (3 << 20)}).encode()
    )
    rows = list(read(jsonl, file))
    assert [row.origin.row for row in rows] == [1, 4, 5]
    assert rows[0].values == {"n": [1, -0.5, 1000.0, 12345678901234567890], "deep": {"a": [None, True, {"b": []}]}}
    assert rows[1].values == {"text": "\0 \U0001f600 \u2028"}, "a line ends at a line feed alone"
    assert rows[2].values == {"long": "x" * (3 << 20)}


@pytest.mark.parametrize(
    ("content", "field", "expected"),
    [
        (" [ ] ", None, []),
        ("[{}]", None, [{}]),
        ('\ufeff [ {"a" : [1]} ,\r\n {"a":2}\n]\n ', None, [{"a": [1]}, {"a": 2}]),
        ('{"data": [{"a": 1}, {"a": 2}]}', "data", [{"a": 1}, {"a": 2}]),
        ('{"v": [{"data": [{"no": 1}]}], "data" : [{"a": 1}], "n": {"x": "]"}}', "data", [{"a": 1}]),
        ('{"data": []}', "data", []),
    ],
)
def test_json(content: str, field: str | None, expected: list[object], tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content, encoding="utf-8", newline="")
    rows = list(read(json_file, tmp_path / "a.json", **({"field": field} if field else {})))
    assert [row.values for row in rows] == expected
    assert [row.origin.row for row in rows] == list(range(1, len(expected) + 1))


def test_csv_quotes_line_ends_and_numbers_of_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(
        b'\xef\xbb\xbfquestion,"the answer"\r\n"1,\r\n2\n3","say ""yes"""\r\n\r\n007,\r\n\xc3\xa9,  x \n"","long'
        + b"x" * 200_000
        + b'"'
    )
    rows = list(read(csv_file, file))
    assert [row.origin.row for row in rows] == [2, 6, 7, 8]
    assert [list(row.values.values()) for row in rows] == [
        ["1,\r\n2\n3", 'say "yes"'],
        ["007", ""],
        ["é", "  x "],
        ["", "long" + "x" * 200_000],
    ]
    assert list(rows[0].values) == ["question", "the answer"]


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("a.csv", "q;a\n1;2,0\n", {"delimiter": ";"}),
        ("a.tsv", "q\ta\n1\t2,0\n", {}),
        ("a.tsv", "q,a\n1,'2,0'\n".replace("'", '"'), {"delimiter": ","}),
        ("a.csv", "q|a\n1|2,0\n", {"delimiter": "|"}),
        ("a.csv", '1,"2,0"\n', {"columns": ["q", "a"]}),
    ],
)
def test_csv_delimiters_and_columns(name: str, content: str, options: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    assert values(csv_file, tmp_path / name, **options) == [{"q": "1", "a": "2,0"}]


TEXTS = strategies.text(strategies.characters(exclude_categories=["Cs"], exclude_characters="\0"))
FINITE = strategies.floats(allow_nan=False, allow_infinity=False)
VALUES = strategies.recursive(
    strategies.one_of(strategies.none(), strategies.booleans(), strategies.integers(), FINITE, TEXTS),
    lambda inner: strategies.lists(inner) | strategies.dictionaries(TEXTS, inner),
    max_leaves=8,
)


@given(
    rows=strategies.lists(strategies.dictionaries(TEXTS, VALUES)),
    ascii_=strategies.booleans(),
    field=strategies.none() | TEXTS,
    indent=strategies.sampled_from([None, 0, 2]),
)
@settings(max_examples=50, deadline=None)
def test_whatever_json_can_hold(rows: list[Any], ascii_: bool, field: str | None, indent: int | None) -> None:
    whole = rows if field is None else {f"{field}<": [{}], field: rows, f"{field}>": {field: []}}
    with tempfile.TemporaryDirectory() as directory:
        array, lines = Path(directory, "a.json"), Path(directory, "a.jsonl")
        array.write_text(json.dumps(whole, ensure_ascii=ascii_, indent=indent), encoding="utf-8", newline="")
        assert values(json_file, array, **({} if field is None else {"field": field})) == rows
        if rows:
            text = "\n".join(json.dumps(row, ensure_ascii=ascii_) for row in rows)
            lines.write_text(text, encoding="utf-8", newline="")
            assert values(jsonl, lines) == rows


@given(rows=strategies.lists(strategies.tuples(TEXTS, TEXTS)), end=strategies.sampled_from(["\n", "\r\n"]))
@settings(max_examples=50, deadline=None)
def test_whatever_csv_can_hold(rows: list[tuple[str, str]], end: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "a.csv")
        with file.open("w", encoding="utf-8", newline="") as out:
            # Where lines end in a line feed alone, Python's writer leaves a carriage return unquoted.
            everything = csv.writer(out, lineterminator=end, quoting=csv.QUOTE_ALL)
            (everything if end == "\n" else csv.writer(out)).writerows([("q", "a"), *rows])
        assert values(csv_file, file) == [{"q": q, "a": a} for q, a in rows]


def test_parquet_values_are_pythons(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    message = pyarrow.struct({"role": pyarrow.string(), "content": pyarrow.string()})
    kinds = {
        "messages": pyarrow.list_(message),
        "n": pyarrow.int64(),
        "map": pyarrow.map_(pyarrow.string(), pyarrow.int64()),
        "none": pyarrow.null(),
    }
    rows: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": "é"}], "n": 1, "map": {"a": 1}, "none": None},
        {"messages": [], "n": None, "map": {}, "none": None},
    ]
    table = pyarrow.Table.from_pylist([{**row, "map": list(row["map"].items())} for row in rows], pyarrow.schema(kinds))
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    found = list(read(parquet, tmp_path / "a.parquet"))
    assert [row.values for row in found] == rows
    assert [row.origin.row for row in found] == [1, 2]


TEXT = b"\xef\xbb\xbfOne\r\ntwo\r\n \r\n\r\n  three\rfour  \n\nfive"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("file", [(1, "One\ntwo\n \n\n  three\nfour  \n\nfive")]),
        ("paragraph", [(1, "One\ntwo"), (5, "  three\nfour  "), (7, "five")]),
        ("line", [(1, "One"), (2, "two"), (5, "  three\nfour  "), (7, "five")]),
    ],
)
def test_txt(row: str, expected: list[tuple[int, str]], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(TEXT)
    found = list(read(txt, tmp_path / "a.txt", row=row))
    assert [(each.origin.row, each.values["text"]) for each in found] == expected
    if row == "file":
        assert values(txt, tmp_path / "a.txt") == [{"text": expected[0][1]}], "a row is a file unless it is said"


# ---------------------------------------------------------------------------------------------------------- hf-dataset


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that datasets reads without a network: 600 rows to train on, 2 to test on."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    directory = tmp_path / "local"
    directory.mkdir()
    for split, number in (("train", 600), ("test", 2)):
        text = "".join(json.dumps({"n": n, "turns": [{"role": "user"}]}) + "\n" for n in range(number))
        (directory / f"{split}.jsonl").write_text(text)
    return directory


def numbers(rows: Iterator[Row]) -> list[int]:
    return [row.values["n"] for row in rows]


@pytest.mark.parametrize("streaming", [False, True], ids=["stored", "streaming"])
def test_hf_dataset(streaming: bool, local: Path) -> None:
    assert numbers(read(hf_dataset, local, streaming=streaming)) == list(range(600))
    assert numbers(read(hf_dataset, local, streaming=streaming, limit=300)) == list(range(300))
    rows = list(read(hf_dataset, local, streaming=streaming, split="test"))
    assert [str(row.origin) for row in rows] == [f"{local}[test]:1", f"{local}[test]:2"]
    assert rows[1].values == {"n": 1, "turns": [{"role": "user"}]}


def test_hf_dataset_slices(local: Path) -> None:
    assert numbers(read(hf_dataset, local, split="train[10:13]+test")) == [10, 11, 12, 0, 1]


def test_hf_dataset_fingerprint(local: Path) -> None:
    find = stage(hf_dataset).fingerprint
    assert find is not None
    found = [find(opened(hf_dataset, local, **options)) for options in ({}, {}, {"split": "test"}, {"revision": "v1"})]
    assert found[0] == found[1]
    assert len({*found}) == 3
    assert find(opened(hf_dataset, local, streaming=True)) is None, "nobody knows what will be read"


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"split": "trian"}, "Unknown split \"trian\". Should be one of ['train', 'test']"),
        ({"split": "trian", "streaming": True}, "Bad split: trian. Available splits: ['train', 'test']"),
        ({"config": "main"}, "BuilderConfig 'main' not found. Available: ['default']"),
    ],
)
def test_hf_dataset_that_cannot_be_loaded(options: dict[str, object], cause: str, local: Path) -> None:
    with pytest.raises(DataError) as error:
        list(read(hf_dataset, local, **options))
    hint = "To train on a local file instead: --set data.path=FILE.jsonl"
    assert error.value.lines == (f"the data set {local} cannot be loaded: {cause}. {hint}",)


def test_hf_dataset_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError) as error:
        list(read(hf_dataset, "openai/gsm8k"))
    assert error.value.message == (
        "the data set openai/gsm8k cannot be loaded: Couldn't reach 'openai/gsm8k' on the Hub (OfflineModeIsEnabled). "
        "The environment forbids the network: unset HF_HUB_OFFLINE and HF_DATASETS_OFFLINE. "
        "To train on a local file instead: --set data.path=FILE.jsonl"
    )


def test_hf_dataset_that_breaks_off(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **keywords: object) -> Iterator[dict[str, int]]:
        yield {"n": 0}
        raise ConnectionError("the network is\ngone.")

    monkeypatch.setattr(datasets, "load_dataset", broken)
    rows = read(hf_dataset, "some/data", streaming=True)
    assert next(rows).values == {"n": 0}
    with pytest.raises(DataError) as error:
        next(rows)
    assert error.value.message == "some/data[train]: the rows behind row 1 cannot be read: the network is gone"


def test_hf_dataset_check(tmp_path: Path) -> None:
    assert problems(hf_dataset, "openai/gsm8k", config="main", split="train[:10]") == []
    assert problems(hf_dataset, tmp_path) == []
    assert problems(hf_dataset, "./data") == [
        "id: a relative path: ./data. Write its absolute path, or use the source of its files, e.g. jsonl"
    ]
    assert problems(hf_dataset, tmp_path / "no") == [
        f"id: no such directory: {tmp_path}/no. Give a name on the hub, or a directory"
    ]
    assert problems(hf_dataset, "a/b", split="train[:9]", streaming=True) == [
        "split: a slice of a split cannot be streamed. Name the split alone, and set: limit"
    ]
