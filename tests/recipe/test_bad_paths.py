"""Paths that a source cannot read, and files that are damaged as a whole."""

# ruff: noqa: E501 - an error is one line, and is read best as one

from __future__ import annotations

import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fitune.errors import DataError
from fitune_plugins.data.sources import csv_file, json_file, jsonl, parquet, txt
from fitune_plugins.data.sources import files as reading
from support.sources import FILES, PACKED, fingerprint, opened, options_of, problems, read, skipping, stage, written

DAMAGED = "Get the file anew, or pack it again"
ENDS = "It takes files that end in .jsonl, .ndjson (and these with .gz, .bz2, .xz, .zst)"
PATTERN = "Give a pattern that matches one: * is any part of a name, ** any path"


def error_of(module: ModuleType, path: Path) -> str:
    """What reading raises, of a source that passes over bad rows."""
    with pytest.raises(DataError) as error:
        skipping(module, path, **options_of(module))
    assert error.value.lines == (error.value.message,)
    return error.value.message


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("no.jsonl", "no such file: {here}/no.jsonl. Give the path of a JSON Lines file"),
        ("no/no.jsonl", "no such file: {here}/no/no.jsonl. Give the path of a JSON Lines file"),
        ("broken.jsonl", "a link to a file that is not there: {here}/broken.jsonl. Mend it, or delete it"),
        ("pipe.jsonl", "not a file: {here}/pipe.jsonl. Give the path of a JSON Lines file"),
        ("empty.jsonl", "the file is empty: {here}/empty.jsonl. Give one with rows"),
        ("hollow", f"no JSON Lines file in the directory {{here}}/hollow. {ENDS}"),
        ("*.ndjson", f"no file matches {{here}}/*.ndjson. {PATTERN}"),
        ("hollow/**", "not a JSON Lines file by its name: {here}/hollow/a.txt. Use the source that reads it: use = \"txt\""),
        ("empty*", "the file is empty: {here}/empty.jsonl. Give one with rows"),
        ("a.csv.gz", "not a JSON Lines file by its name: {here}/a.csv.gz. Use the source that reads it: use = \"csv\""),
        ("x" * 300, "{here}/" + "x" * 300 + ": cannot be read: File name too long"),
    ],
)  # fmt: skip
def test_paths(path: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "hollow").mkdir()
    for name in ("hollow/a.txt", "a.csv.gz"):
        (tmp_path / name).write_text("a")
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "broken.jsonl").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "pipe.jsonl")
    problem = problem.replace("{here}", str(tmp_path))
    assert problems(jsonl, tmp_path / path) == [f"path: {problem}"]
    assert error_of_unchecked(jsonl, tmp_path / path) == problem, (
        "what goes wrong after the check is said in the same words"
    )


def test_links_that_lead_nowhere_are_named(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text("{}\n")
    (tmp_path / "in" / "b.jsonl").symlink_to(tmp_path / "gone.jsonl")
    (tmp_path / "in" / "other.txt").symlink_to(tmp_path / "gone.txt")
    (tmp_path / "in" / "round.jsonl").symlink_to(tmp_path / "in" / "round.jsonl")
    fix = "Mend it, or delete it"
    broken = [f"path: a link to a file that is not there: {tmp_path}/in/{name}.jsonl. {fix}" for name in ("b", "round")]
    for path in (tmp_path, tmp_path / "in" / "*.jsonl", tmp_path / "**" / "*.jsonl"):
        assert problems(jsonl, path) == broken
        assert error_of_unchecked(jsonl, path) == broken[0].removeprefix("path: ")
    for name, said in zip(("b", "round"), broken, strict=True):
        assert problems(jsonl, tmp_path / "in" / f"{name}.jsonl") == [said]


def error_of_unchecked(module: ModuleType, path: Path) -> str:
    record = stage(module)
    with pytest.raises(DataError) as error:
        list(reading.rows(record.name, opened(module, path), lambda *_: iter(()), reading.stop))
    return error.value.message


def test_every_empty_file_of_a_directory_is_named(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "c.csv"):
        (tmp_path / name).write_text("" if name < "c" else "a,b")
    assert [each.split(": ")[2] for each in problems(csv_file, tmp_path)] == [
        f"{tmp_path}/a.csv. Give one with rows",
        f"{tmp_path}/b.csv. Give one with rows",
    ]


@pytest.mark.parametrize("module", FILES, ids=lambda module: stage(module).name)
def test_each_source_says_which_one_reads_the_files_of_another(module: ModuleType, tmp_path: Path) -> None:
    for other in FILES:
        file = tmp_path / f"a{stage(other).suffixes[0]}"
        file.write_text("a")
        found = problems(module, file)
        if other is module or (module, other) == (jsonl, json_file):
            assert found == []
        else:
            (problem,) = found
            assert problem.endswith(f'{file}. Use the source that reads it: use = "{stage(other).name}"')


@pytest.mark.parametrize("cut", ["middle", "end"])
@pytest.mark.parametrize("packed", [end for end in PACKED if end])
@pytest.mark.parametrize("module", FILES, ids=lambda module: stage(module).name)
def test_archives_that_are_cut_off(module: ModuleType, packed: str, cut: str, tmp_path: Path) -> None:
    content = PACKED[packed](written(module, [{"text": os.urandom(64).hex()} for _ in range(200)]))
    file = tmp_path / f"a{stage(module).suffixes[0]}{packed}"
    file.write_bytes(content[: len(content) // 2 if cut == "middle" else -3])
    assert error_of(module, file) == f"{file}: the archive is cut off before its end. {DAMAGED}"


@pytest.mark.parametrize("packed", [end for end in PACKED if end])
def test_archives_that_are_damaged(packed: str, tmp_path: Path) -> None:
    content = bytearray(PACKED[packed](os.urandom(9999).hex().encode()))
    content[8:72] = b"\xff" * 64  # the first block: what is unpacked has no checksum in every format
    file = tmp_path / f"a.txt{packed}"
    file.write_bytes(content)
    error = error_of(txt, file)
    assert error.startswith(f"{file}: the archive is damaged: ")
    assert error.endswith(f". {DAMAGED}")


@pytest.mark.parametrize("module", FILES, ids=lambda module: stage(module).name)
@pytest.mark.parametrize("end", ["", ".gz", ".zst"], ids=lambda end: end or "plain")
def test_a_file_that_may_not_be_read(
    module: ModuleType, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / f"a{stage(module).suffixes[0]}{end}"
    file.write_bytes(b"a")

    def refuse(*arguments: object, **keywords: object) -> None:
        raise PermissionError(13, "Permission denied", str(file))

    rows = read(module, file)  # a test may run as root, who may read everything
    for name in ("builtins.open", "pathlib.Path.open", "io.open"):
        monkeypatch.setattr(name, refuse)
    with pytest.raises(DataError) as error:
        next(rows)
    assert error.value.message == f"{file}: cannot be read: Permission denied"
    with pytest.raises(DataError) as error:
        fingerprint(module, file)
    assert error.value.message == f"{file}: cannot be read: Permission denied"


def test_a_directory_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("os.scandir", refuse)
    assert problems(jsonl, tmp_path) == [f"path: {tmp_path}: cannot be read: Permission denied"]


def test_a_bad_file_among_good_ones(tmp_path: Path) -> None:
    for name, content in (("a", '{"n": 1}\n'), ("b", '{"n": 2}\n{"n": \n'), ("c", '{"n": 3}\n')):
        (tmp_path / f"{name}.jsonl").write_text(content)
    rows = read(jsonl, tmp_path)
    assert [next(rows).values["n"], next(rows).values["n"]] == [1, 2]
    with pytest.raises(DataError, match=r"b\.jsonl:2: not JSON: Expecting value \(column 6\)"):
        next(rows)
    kept, counts = skipping(jsonl, tmp_path)
    assert [row.values["n"] for row in kept] == [1, 2, 3]
    assert counts == {"bad rows skipped": 1}


def test_limit_counts_the_rows_that_are_given(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('1\n{"n": 1}\n2\n{"n": 2}\n3\n')
    kept, counts = skipping(jsonl, tmp_path / "a.jsonl", limit=2)
    assert [row.values["n"] for row in kept] == [1, 2]
    assert counts == {"bad rows skipped": 2}


# ------------------------------------------------------------------------------------------------------------- Parquet


def parquet_file(path: Path, *columns: tuple[str, Any]) -> Path:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_arrays([values for _, values in columns], names=[name for name, _ in columns])
    pyarrow.parquet.write_table(table, path, row_group_size=600)
    return path


def test_a_value_of_parquet_that_is_not_utf_8(tmp_path: Path) -> None:
    import pyarrow

    texts = pyarrow.array([b"\xe9" if n == 300 else b"%d" % n for n in range(700)], pyarrow.binary())
    file = parquet_file(tmp_path / "a.parquet", ("text", texts.view(pyarrow.string())))
    with pytest.raises(DataError) as error:
        list(read(parquet, file))
    cause = "'utf-8' codec can't decode byte 0xe9 in position 0: unexpected end of data"
    assert error.value.message == f"{file}:301: a value that cannot be read: {cause}"
    rows, counts = skipping(parquet, file)
    assert [row.values["text"] for row in rows] == [str(n) for n in range(700) if n != 300]
    assert [row.origin.row for row in rows] == [n + 1 for n in range(700) if n != 300]
    assert counts == {"bad rows skipped": 1}


def test_parquet_with_two_columns_of_a_name(tmp_path: Path) -> None:
    import pyarrow

    file = parquet_file(tmp_path / "a.parquet", ("a", pyarrow.array([1])), ("a", pyarrow.array([2])))
    assert error_of(parquet, file) == f'{file}: two columns have the name "a". Rename one'


def test_parquet_that_is_damaged_within(tmp_path: Path) -> None:
    import pyarrow

    texts = pyarrow.array([os.urandom(64).hex() for _ in range(1200)])
    file = parquet_file(tmp_path / "a.parquet", ("text", texts))
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 20_000] = bytes(20_000)
    file.write_bytes(content)
    error = error_of(parquet, file)
    assert error.startswith(f"{file}: not a Parquet file, or damaged: ")
    assert len(error.splitlines()) == 1


# ------------------------------------------------------------------------------------------------------------- options


def test_options_of_csv(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("a,b")
    fix = 'Write e.g. ";", or "\\t" for a tab'
    for delimiter in (";;", "", '"', "\n"):
        what = f"the delimiter is {json.dumps(delimiter)}, not one character"
        assert problems(csv_file, file, delimiter=delimiter) == [f"delimiter: {what}. {fix}"]
    for columns in (["a", "a"], ["a", " "]):
        found = problems(csv_file, file, columns=columns)
        assert found == ["columns: columns need names that differ. Name every column once"]
