"""Every kind of bad file: one whole error each, whether a bad row stops the run or is passed over and counted."""

# ruff: noqa: E501 - an error is one line, and is read best as one

from __future__ import annotations

import csv
import gzip
import lzma
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fitune.errors import DataError
from fitune_plugins.data.sources import csv_file, json_file, parquet
from fitune_plugins.data.sources import files as reading
from support.sources import FILES, read, skipping, stage, written, zstd

GOOD = '{"a": 1}\n'
LATIN = "é".encode("latin-1")
MIB = 1 << 20
"""The longest line, text and file of JSON, here; a run takes more."""
DAMAGED = "Get the file anew, or pack it again"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A file, and what is said of it."""

    name: str
    file: str
    content: bytes
    error: str
    """{file} is the file."""
    left: Sequence[Mapping[str, Any]] | None
    """The rows that are left where bad ones are passed over; None of an error that skips nothing."""
    options: Mapping[str, object] = field(default_factory=dict)

    @property
    def module(self) -> ModuleType:
        """The source that reads the file."""
        return next(each for each in FILES if self.file.endswith(stage(each).suffixes))


def case(
    name: str,
    file: str,
    content: str | bytes,
    error: str,
    left: Sequence[Mapping[str, Any]] | None = None,
    **options: object,
) -> Case:
    content = content if isinstance(content, bytes) else content.encode()
    return Case(name=name, file=file, content=content, error=error, left=left, options=options)


def row(name: str, bad: str | bytes, what: str) -> Case:
    """JSON Lines whose second row is bad, between two good ones."""
    content = GOOD.encode() + (bad if isinstance(bad, bytes) else bad.encode()) + b"\n" + GOOD.encode()
    return case(name, "a.jsonl", content, "{file}:2: " + what, [{"a": 1}, {"a": 1}])


def element(name: str, bad: str, what: str) -> Case:
    """A JSON array whose second row is bad, between two good ones."""
    return case(name, "a.json", f"[{GOOD},{bad},\n{GOOD}]", "{file}:2: " + what, [{"a": 1}, {"a": 1}])


NOT_JSON = "JSON that cannot be read: "
TWICE = NOT_JSON + 'the key "a" stands twice in one object'
HALF = NOT_JSON + "\\ud83d is half a character: text was cut inside a surrogate pair"
RAGGED = "Put a field that holds a delimiter or a line end in quotes"
OPEN = "{file}:2: a quote that is opened in this row is never closed. Double each quote in a text"
NUL = "the line holds NUL bytes: the file was damaged, or is no text"
ONE = [{"q": "1", "a": "2"}]

CASES = (
    # ----------------------------------------------------------------------------------------------- rows of jsonl
    row("cut off", '{"a": ', "not JSON: Expecting value (column 6). Write one JSON object a line"),
    row("two objects", '{"a": 1}{"a": 2}', "not JSON: Extra data (column 9). Write one JSON object a line"),
    row("not an object", '"a"', 'not a JSON object: "a". Write one JSON object a line'),
    row("not UTF-8", b'{"a": "' + LATIN + b'"}', "not UTF-8 (byte 7 of the line). Save the file as UTF-8"),
    row("NUL bytes", "\0" * 64, "the line holds NUL bytes: the file was damaged, or not written to its end"),
    row("control character", '{"a": "\x07"}', "not JSON: Invalid control character at (column 8). Write one JSON object a line"),
    row("key twice", '{"a": 1, "b": 2, "a": 3}', TWICE),
    row("key twice, deep", '{"x": [{"a": 1, "a": 1}]}', TWICE),
    row("NaN", '{"a": NaN}', NOT_JSON + "NaN is no number in JSON: write null, or leave it out"),
    row("Infinity", '{"a": [-Infinity]}', NOT_JSON + "-Infinity is no number in JSON: write null, or leave it out"),
    row("number too large", '{"a": 1e999}', NOT_JSON + "the number 1e999 is too large"),
    row("number too long", '{"a": ' + "9" * 5000 + "}", NOT_JSON + "it holds a number of too many digits"),
    row("too deep", "[" * 200_000, NOT_JSON + "it is nested too deeply"),
    row("half a character", '{"a": "\\ud83d"}', HALF),
    row("half a character in a key", '{"x\\uD83D": 1}', HALF),
    row("line too long", '{"a": "' + "x" * MIB + '"}', "the line is longer than 1 MiB. Is this the right format?"),
    # ------------------------------------------------------------------------------------------------ rows of json
    element("element: not an object", "[1]", "not a JSON object: [1]. Write an array of objects"),
    element("element: key twice", '{"a": {}, "a": "]"}', TWICE),
    element("element: NaN", '{"a": "}", "b": NaN}', NOT_JSON + "NaN is no number in JSON: write null, or leave it out"),
    element("element: half a character", '{"a": "\\ud83d "}', HALF),
    # -------------------------------------------------------------------------------------------- whole JSON files
    case("array cut off", "a.json", '[{"a": 1},\n {"a": 2}', "{file}: not JSON: Expecting ',' delimiter (line 2, column 10, behind row 2)"),
    case("no comma", "a.json", '[{"a": 1}\n {"a": 2}]', "{file}: not JSON: Expecting ',' delimiter (line 2, column 2, behind row 1)"),
    case("comma at the end", "a.json", '[{"a": 1},]', "{file}: not JSON: Expecting value (line 1, column 11, behind row 1)"),
    case("more behind the array", "a.json", "[] []", "{file}: not JSON: Extra data (line 1, column 4, behind row 0)"),
    case("JSON Lines", "a.json", GOOD * 2, '{file}: the file is JSON Lines, not one JSON value. Read it with use = "jsonl"'),
    case("an object", "a.json", '{"v": 1, "data": []}', '{file}: the file is a JSON object, not an array. Name the array\'s key: field = "data"'),
    case("an object without arrays", "a.json", GOOD, "{file}: the file is a JSON object, not an array. Write an array of objects"),
    case("no such field", "a.json", '{"v": 1, "data": [], "more": []}', '{file}: no array under the key "v". Arrays in it: data, more', field="v"),
    case("no field", "a.json", GOOD, '{file}: no array under the key "data". It holds no array', field="data"),
    case("a field of an array", "a.json", "[]", "{file}: the file is an array, not an object that holds one. Leave out: field", field="data"),
    case("field twice", "a.json", '{"a": [], "a": []}', "{file}: " + TWICE + " (behind row 0)", field="a"),
    case("a text", "a.json", '"text"', '{file}: not a JSON array: "text". Write an array of objects'),
    case("JSON not UTF-8", "a.json", b"[" + LATIN, "{file}: not UTF-8 (byte 1). Save the file as UTF-8"),
    case("JSON too large", "a.json", "[" + " " * MIB + "]", "{file}: larger than 1 MiB, the most that a JSON file may have. Write it as JSON Lines, one object a line, which is not read whole"),
    # ------------------------------------------------------------------------------------------------- rows of csv
    case("too few fields", "a.csv", "q,a\n1\n1,2\n", "{file}:2: 1 field, but 2 fields in the header. " + RAGGED, ONE),
    case("too many fields", "a.csv", '"q",a\n1,2\n"x\ny",2,3\n1,2\n', "{file}:3: 3 fields, but 2 fields in the header. " + RAGGED, ONE * 2),
    case("quote within quotes", "a.csv", 'q,a\n"say "yes"",2\n1,2\n', "{file}:2: not CSV: ',' expected after '\"'. Double each quote in a text", ONE),
    case("CSV not UTF-8", "a.csv", b'q,a\n1,2\n"x\n' + LATIN + b'",2\n1,2\n', "{file}:4: not UTF-8 (byte 0 of the line). Save the file as UTF-8", ONE * 2),
    case("NUL in CSV", "a.csv", "q,a\n\0\0,2\n1,2", "{file}:2: " + NUL, ONE),
    case("carriage return alone", "a.csv", "q,a\n1,2\r1,2\n1,2\n", "{file}:2: a carriage return alone. Let lines end in \\n or \\r\\n, or put the field in quotes", ONE),
    # --------------------------------------------------------------------------------------------- whole CSV files
    case("quote not closed", "a.csv", 'q,a\n"1,2\n1,2\n', OPEN),
    case("field too long", "a.csv", 'q,a\n"' + "1,2\n" * MIB, "{file}:2: a field is longer than 1 MiB, or a quote is never closed. Split long texts, or double each quote in a text"),
    case("CSV line too long", "a.csv", "q,a\n" + "1" * MIB + ",2\n1,2\n", "{file}:2: the line is longer than 1 MiB. Is this the right format?"),
    case("another delimiter", "a.csv", "q;a\n1;2\n", '{file}:1: the header is one column, "q;a". Name what stands between fields: delimiter = ";"'),
    case("commas in a .tsv", "a.tsv", "q,a\n1,2\n", '{file}:1: the header is one column, "q,a". Name what stands between fields: delimiter = ","'),
    case("tabs in a .csv", "a.csv", "q\ta\n1\t2\n", '{file}:1: the header is one column, "q\\ta". Name what stands between fields: delimiter = "\\t"'),
    case("column twice", "a.csv", "q,a,q\n1,2,3\n", '{file}:1: two columns of the header have the name "q". Rename one'),
    case("column without a name", "a.csv", "q,,a\n1,2,3\n", "{file}:1: column 2 of the header has no name. Give it one, or set: columns"),
    case("header not UTF-8", "a.csv", LATIN + b",a\n1,2\n", "{file}:1: not UTF-8 (byte 0 of the line). Save the file as UTF-8"),
    # -------------------------------------------------------------------------------------------------------- text
    case("text not UTF-8", "a.txt", b"1\n\n2\n" + LATIN + b"\n\n3", "{file}:4: not UTF-8 (byte 0 of the line). Save the file as UTF-8", [{"text": "1"}, {"text": "3"}], row="paragraph"),
    case("NUL in text", "a.txt", "1\n\0\n3", "{file}:2: " + NUL, [{"text": "1"}, {"text": "3"}], row="line"),
    case("text file not UTF-8", "a.txt", b"1\n" + LATIN, "{file}:2: not UTF-8 (byte 0 of the line). Save the file as UTF-8", []),
    case("text file too long", "a.txt", "1234567\n" * (MIB // 8 + 1), '{file}:1: the file is longer than 1 MiB. Set: row = "paragraph" (or "line")'),
    case("paragraph too long", "a.txt", "1\n\n" + "1234567\n" * (MIB // 8 + 1), '{file}:3: the paragraph is longer than 1 MiB. Set: row = "line"', row="paragraph"),
    # --------------------------------------------------------------------------------------------------- archives
    case("not gzip", "a.jsonl.gz", GOOD, "{file}: the archive is damaged: Not a gzipped file (b'{\"'). " + DAMAGED),
    case("not bzip2", "a.csv.bz2", "q,a\n", "{file}: the archive is damaged: Invalid data stream. " + DAMAGED),
    case("not xz", "a.json.xz", "[" + " " * 99 + "]", "{file}: the archive is damaged: Input format not supported by decoder. " + DAMAGED),
    case("not Zstandard", "a.txt.zst", "text", "{file}: the archive is damaged: ZSTD decompress failed: Unknown frame descriptor. " + DAMAGED),
    case("empty in an archive", "a.jsonl.gz", gzip.compress(b""), "{file}: the file is empty. Give one with rows"),
    case("gzip by another name", "a.jsonl", gzip.compress(b"{}"), "{file}: a gzip file by its content. Let its name end in .gz"),
    case("xz by another name", "a.json", lzma.compress(b"[]"), "{file}: an xz file by its content. Let its name end in .xz"),
    case("Zstandard by another name", "a.csv", zstd(b"q,a"), "{file}: a Zstandard file by its content. Let its name end in .zst"),
    case("zip archive", "a.txt", b"PK\x03\x04", "{file}: a zip archive by its content. Unpack it"),
    # ----------------------------------------------------------------------------------------------------- Parquet
    case("not Parquet", "a.parquet", GOOD, "{file}: not a Parquet file, or damaged: Parquet magic bytes not found in footer. Either the file is corrupted or this is not a parquet file."),
    case("Parquet cut off", "a.parquet", written(parquet, [{"a": "1"}])[:-40], "{file}: not a Parquet file, or damaged: Parquet magic bytes not found in footer. Either the file is corrupted or this is not a parquet file."),
)  # fmt: skip


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is too long is so at a megabyte."""
    monkeypatch.setattr(reading, "LONGEST", MIB)
    monkeypatch.setattr(json_file, "LARGEST", MIB)
    before = csv.field_size_limit(MIB)
    yield
    csv.field_size_limit(before)


def write(bad: Case, directory: Path) -> Path:
    file = directory / bad.file
    file.write_bytes(bad.content)
    return file


def only_error(bad: Case, file: Path, call: Callable[[], object]) -> None:
    with pytest.raises(DataError) as error:
        call()
    assert error.value.message == bad.error.replace("{file}", str(file))
    assert error.value.lines == (error.value.message,), "one line"


@pytest.mark.parametrize("bad", CASES, ids=lambda bad: bad.name)
def test_each_stops_the_run(bad: Case, tmp_path: Path) -> None:
    file = write(bad, tmp_path)
    only_error(bad, file, lambda: list(read(bad.module, file, **bad.options)))


@pytest.mark.parametrize("bad", CASES, ids=lambda bad: bad.name)
def test_bad_rows_are_passed_over_and_bad_files_are_not(bad: Case, tmp_path: Path) -> None:
    file = write(bad, tmp_path)
    if bad.left is None:
        only_error(bad, file, lambda: skipping(bad.module, file, **bad.options))
        return
    rows, counts = skipping(bad.module, file, **bad.options)
    assert [row.values for row in rows] == bad.left
    assert counts == {"bad rows skipped": 1}


def test_names_are_told_apart() -> None:
    assert len({bad.name for bad in CASES}) == len(CASES)


class Counted(str):
    """A name that counts how often it is compared."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return super().__eq__(other)

    __hash__ = str.__hash__


def test_names_of_columns_are_compared_once() -> None:
    """On 0.1 each was compared with all others: a hundred thousand columns took minutes."""
    names: list[str] = [Counted(f"c{number}") for number in range(1000)]
    Counted.compared = 0
    assert len(csv_file._header(names, "f.csv:1", None)) == 1000
    assert Counted.compared < 10_000
