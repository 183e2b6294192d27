"""Entries of the cache of prepared rows: whole or not there, built once, and built anew where they are damaged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fitune import Example
from fitune.data.cache import Build, Rows, build_or_open, cache_directory
from fitune.data.cache_writer import Writer
from fitune.errors import DataError
from support.examples import KEY, example, plain
from support.paths import TESTS


def rows_of(number: int) -> Build:
    """Builds so many rows."""

    def build(writer: Writer) -> Mapping[str, Any]:
        writer.write(example(n) for n in range(number))
        return {}

    return build


def never(writer: Writer) -> Mapping[str, Any]:
    raise AssertionError("built again")


def left() -> list[str]:
    return sorted(path.name for path in cache_directory().iterdir())


# ---------------------------------------------------------------------------------------------------------- entries


def test_the_second_start_finds_what_the_first_built() -> None:
    first, hit = build_or_open(KEY, rows_of(3))
    second, hit_then = build_or_open(KEY, never)
    assert (hit, hit_then) == (False, True)
    assert list(map(plain, first)) == list(map(plain, second))
    assert left() == [KEY]
    assert sorted(path.name for path in (cache_directory() / KEY).iterdir()) == ["meta.json", "rows.arrow"]


@pytest.mark.parametrize("error", [DataError("bad row"), KeyboardInterrupt(), MemoryError()])
def test_a_build_that_fails_leaves_nothing(error: BaseException) -> None:
    def build(writer: Writer) -> Mapping[str, Any]:
        def rows() -> Iterator[Example]:
            yield from map(example, range(2000))
            raise error

        writer.write(rows())
        return {}

    with pytest.raises(type(error)):
        build_or_open(KEY, build)
    assert left() == []
    assert not build_or_open(KEY, rows_of(3))[1]


PROCESS = """\
import os, sys, time
from pathlib import Path
from support.examples import KEY, example
from fitune.data.cache import build_or_open

place = Path(sys.argv[1])

def build(writer):
    def rows():
        for number in range(3000):
            if number == 2000:
                with (place / "builds").open("a") as file:
                    file.write("built\\n")
                print("half", flush=True)
                sys.stdin.readline()
            yield example(number)
    return {"rows": writer.write(rows())}

rows, hit = build_or_open(KEY, build)
print(len(rows), hit, flush=True)
"""


def start(place: Path) -> subprocess.Popen[str]:
    """A process that builds the entry, and waits for a line in the middle of it."""
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    command = [sys.executable, "-c", PROCESS, str(place)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_build_that_is_killed_leaves_no_entry(tmp_path: Path) -> None:
    with start(tmp_path) as process:
        assert line(process) == "half"
        process.send_signal(signal.SIGKILL)
    assert KEY not in left()
    again, hit = build_or_open(KEY, rows_of(3))
    assert (hit, len(again)) == (False, 3)
    assert left() == [KEY]


def test_processes_share_one_build(tmp_path: Path) -> None:
    with start(tmp_path) as first:
        assert line(first) == "half"
        with start(tmp_path) as second:
            first.communicate("go on\n")
            assert line(second) == "3000 True"
    assert (tmp_path / "builds").read_text() == "built\n"
    assert left() == [KEY]


def test_what_is_not_kept_goes_with_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    rows, hit = build_or_open(None, rows_of(3))
    assert (hit, len(rows)) == (False, 3)
    assert rows.directory.parent == tmp_path / "temporary"
    assert not cache_directory().exists()
    del rows
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_build_that_fails_and_is_not_kept_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    with pytest.raises(AssertionError, match="built again"):
        build_or_open(None, never)
    assert list((tmp_path / "temporary").iterdir()) == []


# ---------------------------------------------------------------------------------------------------------- damage


def truncate(entry: Path) -> None:
    file = entry / "rows.arrow"
    file.write_bytes(file.read_bytes()[:-100])


def empty(entry: Path) -> None:
    (entry / "rows.arrow").write_bytes(b"")


def without_meta(entry: Path) -> None:
    (entry / "meta.json").unlink()


def half_of_meta(entry: Path) -> None:
    (entry / "meta.json").write_text('{"files": [', encoding="utf-8")


def meta_of_another_kind(entry: Path) -> None:
    (entry / "meta.json").write_text("[]", encoding="utf-8")


def flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def byte_of_rows(entry: Path) -> None:
    """A token becomes another, and the file can be read as before."""
    file = entry / "rows.arrow"
    flip(file, file.read_bytes().index(np.array([2] * 3, dtype="<i4").tobytes()))


def byte_of_meta(entry: Path) -> None:
    """A name becomes another, and the file can be read as before."""
    file = entry / "meta.json"
    flip(file, file.read_bytes().index(b'"files": ["') + len(b'"files": ["'))


def digest_of_meta(entry: Path) -> None:
    file = entry / "meta.json"
    said = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**said, "meta.json": "0" * 64}), encoding="utf-8")


def without_digests(entry: Path) -> None:
    file = entry / "meta.json"
    said = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({"files": said["files"]}), encoding="utf-8")


FLIPPED = [byte_of_rows, byte_of_meta, digest_of_meta, without_digests]


@pytest.mark.parametrize("damage", FLIPPED)
def test_what_is_damaged_within_can_be_read_all_the_same(damage: Any) -> None:
    build_or_open(KEY, rows_of(3))
    damage(cache_directory() / KEY)
    assert len(Rows(cache_directory() / KEY)) == 3


@pytest.mark.parametrize("damage", [truncate, empty, without_meta, half_of_meta, meta_of_another_kind, *FLIPPED])
def test_a_damaged_entry_is_built_anew_and_told_of(damage: Any) -> None:
    build_or_open(KEY, rows_of(3))
    damage(cache_directory() / KEY)
    told: list[str] = []
    again, hit = build_or_open(KEY, rows_of(4), told.append)
    assert (hit, len(again)) == (False, 4)
    assert told == [f"the prepared data in {cache_directory() / KEY} are damaged, and are prepared anew"]
    assert build_or_open(KEY, never, told.append)[1]
    assert len(told) == 1


def test_a_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError) as error:
        build_or_open(KEY, rows_of(1))
    assert error.value.message == (
        f"prepared data cannot be kept in {tmp_path / 'file' / 'cache'}: Not a directory. "
        "Set FT_CACHE to another directory, or [data] cache = false"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_cache_that_may_only_be_read_serves_what_it_has(tmp_path: Path) -> None:
    build_or_open(KEY, rows_of(3))
    cache_directory().chmod(0o500)
    try:
        assert build_or_open(KEY, never)[1]
        with pytest.raises(DataError, match="Permission denied"):
            build_or_open("1" * 32, rows_of(1))
    finally:
        cache_directory().chmod(0o700)


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_directory() == tmp_path / "cache"
    monkeypatch.delenv("FT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "xdg" / "fitune" / "data"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "fitune" / "data"
