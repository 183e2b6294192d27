"""The sources of local files: which files they find, in which order, and what they read of them when."""

from __future__ import annotations

import gzip
import io
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry, write_recipe
from fitune_plugins.data.sources import csv_file, jsonl, parquet, txt
from fitune_plugins.data.sources import files as reading
from support.sources import FILES, PACKED, fingerprint, options_of, origins, read, stage, values, written

ROWS = [{"text": f"row {number}, é"} for number in range(5)]


# --------------------------------------------------------------------------------------------------------- all formats


@pytest.mark.parametrize("packed", PACKED, ids=lambda end: end or "plain")
@pytest.mark.parametrize("module", FILES, ids=lambda module: stage(module).name)
def test_every_suffix_of_every_source(module: ModuleType, packed: str, tmp_path: Path) -> None:
    suffixes = [end for end in stage(module).suffixes if end.count(".") == 1]
    for end in suffixes:
        rows, content = ROWS, written(module, ROWS)
        if end == ".tsv":
            content = content.replace(b",", b"\t").replace(b'"', b"")
            rows = [{"text": row["text"].replace(",", "")} for row in ROWS]
            content = written(module, rows)
        file = tmp_path / f"a{end}{packed}"
        file.write_bytes(PACKED[packed](content))
        assert file.name.endswith(stage(module).suffixes)
        assert values(module, file, **options_of(module)) == rows


def test_suffixes_say_which_source_reads_a_file() -> None:
    assert {stage(module).name: stage(module).suffixes[::5] for module in FILES} == {
        "jsonl": (".jsonl", ".ndjson"),
        "json": (".json",),
        "csv": (".csv", ".tsv"),
        "parquet": (".parquet",),
        "txt": (".txt",),
    }
    assert stage(jsonl).suffixes[:5] == (".jsonl", ".jsonl.gz", ".jsonl.bz2", ".jsonl.xz", ".jsonl.zst")
    every = [end for module in FILES for end in stage(module).suffixes]
    assert len(set(every)) == len(every), "no name is read by two"


@pytest.mark.parametrize("module", FILES, ids=lambda module: stage(module).name)
def test_limit(module: ModuleType, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}{stage(module).suffixes[0]}").write_bytes(written(module, ROWS))
    given = options_of(module)
    assert values(module, tmp_path, limit=3, **given) == ROWS[:3]
    assert values(module, tmp_path, limit=7, **given) == ROWS + ROWS[:2]
    assert values(module, tmp_path, limit=70, **given) == ROWS * 2


@pytest.mark.parametrize("module", FILES, ids=lambda module: stage(module).name)
def test_fingerprint_is_of_names_and_bytes(module: ModuleType, tmp_path: Path) -> None:
    end = stage(module).suffixes[0]
    directory = tmp_path / "one"
    (directory / "deep").mkdir(parents=True)
    (directory / f"a{end}").write_bytes(b"a")
    (directory / "deep" / f"b{end}").write_bytes(b"b")
    before = fingerprint(module, directory)

    os.utime(directory / f"a{end}", (1, 1))
    (directory / "notes.md").write_text("read by none")
    assert fingerprint(module, directory) == before, "dates and other files do not count"
    moved = directory.rename(tmp_path / "two")
    assert fingerprint(module, moved) == before, "nor does the place"
    assert fingerprint(module, moved / "**" / f"*{end}") == before

    (moved / f"a{end}").write_bytes(b"x")
    changed = fingerprint(module, moved)
    (moved / f"a{end}").rename(moved / f"c{end}")
    renamed = fingerprint(module, moved)
    (moved / f"d{end}").write_bytes(b"d")
    assert len({before, changed, renamed, fingerprint(module, moved), fingerprint(module, moved / f"c{end}")}) == 5


# --------------------------------------------------------------------------------------------------- which files, when


def tree(directory: Path) -> Path:
    """Files of one row each."""
    for name in ("b.jsonl", "a.ndjson", "a-2.jsonl.gz", "B.JSONL", "z/a.jsonl", "z/y/a.jsonl", ".hidden/a.jsonl",
                 ".a.jsonl", "z/.cache/a.jsonl", "notes.txt", "x.json"):  # fmt: skip
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"name": name}).encode()
        file.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return directory


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("", ["B.JSONL", "a-2.jsonl.gz", "a.ndjson", "b.jsonl", "z/a.jsonl", "z/y/a.jsonl"]),
        ("z", ["z/a.jsonl", "z/y/a.jsonl"]),
        ("*.jsonl", ["b.jsonl"]),
        ("*/*.jsonl", ["z/a.jsonl"]),
        ("**/a*", ["a-2.jsonl.gz", "a.ndjson", "z/a.jsonl", "z/y/a.jsonl"]),
        ("z/**", ["z/a.jsonl", "z/y/a.jsonl"]),
        ("[ab].*", ["a.ndjson", "b.jsonl"]),
        ("?.jsonl", ["b.jsonl"]),
        ("x.json", ["x.json"]),
    ],
)
def test_directories_and_patterns(pattern: str, names: list[str], tmp_path: Path) -> None:
    assert [row["name"] for row in values(jsonl, tree(tmp_path) / pattern)] == names


def test_a_name_that_looks_like_a_pattern_is_a_name(tmp_path: Path) -> None:
    odd = tmp_path / "run [1]"
    odd.mkdir()
    for name in ("a*.jsonl", "ab.jsonl"):
        (odd / name).write_text(json.dumps({"name": name}))
    assert values(jsonl, odd / "a*.jsonl") == [{"name": "a*.jsonl"}]
    assert values(jsonl, odd / "*.jsonl") == [{"name": "a*.jsonl"}, {"name": "ab.jsonl"}]


def test_links_to_files_are_read_and_links_to_directories_are_not(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    directory.mkdir()
    (tmp_path / "blob").write_text('{"a": 1}')
    (directory / "link.jsonl").symlink_to(tmp_path / "blob")
    (directory / "round").symlink_to(directory)
    assert origins(read(jsonl, directory), directory) == ["link.jsonl:1"]


def test_a_recipe_names_files_from_its_own_directory(tmp_path: Path) -> None:
    pattern = {"data": {"source": [{"use": "jsonl", "path": "more/**/part-*"}]}}
    (tmp_path / "recipe" / "more" / "deep").mkdir(parents=True)
    for name in ("more/part-1.jsonl", "more/deep/part-2.ndjson", "more/other.jsonl"):
        (tmp_path / "recipe" / name).write_text(json.dumps({"messages": [], "name": name}))
    (source,) = read_recipe(write_recipe(tmp_path / "recipe", pattern), open_registry()).sources
    assert [row["name"] for row in values(jsonl, source.options.path)] == [
        "more/deep/part-2.ndjson",
        "more/part-1.jsonl",
    ]


class Opened:
    """Notes the files that `reading` opens and the bytes that are taken from them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files: dict[str, Any] = {}
        unpacked = reading._unpacked

        def noted(path: Path) -> Any:
            self.files[path.name] = unpacked(path)
            return self.files[path.name]

        monkeypatch.setattr(reading, "_unpacked", noted)


@pytest.mark.parametrize("module", [jsonl, csv_file, txt], ids=lambda module: stage(module).name)
@pytest.mark.parametrize("packed", ["", ".gz"], ids=["plain", "gzip"])
def test_rows_are_read_as_they_are_asked_for(
    module: ModuleType, packed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"text": "x" * 999}
    for name in ("a", "b"):
        content = written(module, [row] * 10_000)
        (tmp_path / f"{name}{stage(module).suffixes[0]}{packed}").write_bytes(PACKED[packed](content))
    opened = Opened(monkeypatch)
    rows = read(module, tmp_path, **options_of(module))
    assert opened.files == {}
    assert next(rows).values == row
    (file,) = opened.files.values()
    assert 0 < file.tell() <= 2 * reading.BLOCK < 10_000 * 999
    assert len(list(rows)) == 19_999
    assert all(file.closed for file in opened.files.values())


def test_parquet_is_read_as_its_rows_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow
    import pyarrow.parquet

    taken: list[int] = []

    class Noted(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            taken.append(len(data or b""))
            return data or b""

    file = tmp_path / "a.parquet"
    table = pyarrow.table({"text": [os.urandom(512).hex() for _ in range(16_000)]})
    pyarrow.parquet.write_table(table, file, row_group_size=8_000, compression="none", use_dictionary=False)
    rows = read(parquet, file)
    monkeypatch.setattr(Path, "open", lambda path, mode: Noted(path))
    assert next(rows).values == table.slice(0, 1).to_pylist()[0]
    assert sum(taken) <= 3 * parquet.READ < file.stat().st_size / 5
    assert len(list(rows)) == 15_999
    assert max(taken) <= 2 * parquet.READ
