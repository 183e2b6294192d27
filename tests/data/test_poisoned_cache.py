"""Prepared rows that are not this user's own for this very key are never trained on, however well they fit together.

On 0.1 all of these rows were taken, or ended the run with a traceback, or were waited for.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from fitune import Example
from fitune.data.cache import META, ROWS, build_or_open, cache_directory
from fitune.data.cache_writer import Writer
from fitune.data.seal import BYTES, key_file, seal_of, users_key
from fitune.plugin.digest import digest_of
from support.examples import KEY, example, plain

OTHER = "1" * 32


def rows_of(*numbers: int) -> Callable[[Writer], dict[str, object]]:
    def build(writer: Writer) -> dict[str, object]:
        return {"rows": writer.write(example(n) for n in numbers)}

    return build


def numbers(rows: Iterable[Example]) -> list[int]:
    return [int(row.input_ids[0]) for row in rows]


def poisoned(entry: Path) -> None:
    """Other rows, with every digest made anew, as anybody can make them who reads this code."""
    writer = Writer(entry / ROWS)
    writer.write([example(66)])
    said = {"rows": 1, "files": list(writer.files), "digest": writer.digest, ROWS: digest_of(entry / ROWS)}
    own = hashlib.sha256(json.dumps(said).encode()).hexdigest()
    (entry / META).write_text(json.dumps({**said, META: own}), encoding="utf-8")


def of_another_key(entry: Path) -> None:
    """An entry of this user's, in the place of another."""
    build_or_open(OTHER, rows_of(66))
    shutil.rmtree(entry)
    shutil.copytree(cache_directory() / OTHER, entry)


def of_another_user(entry: Path) -> None:
    """Sealed with the key of somebody else."""
    said = json.loads((entry / META).read_text(encoding="utf-8"))
    del said[META]
    seal = seal_of(b"x" * BYTES, entry.name, said)
    (entry / META).write_text(json.dumps({**said, META: seal}), encoding="utf-8")


def older_rows(entry: Path) -> None:
    """The rows of another entry, beside what is said of this one."""
    build_or_open(OTHER, rows_of(66))
    shutil.copy(cache_directory() / OTHER / ROWS, entry / ROWS)


def linked(entry: Path) -> None:
    """A link to an entry elsewhere."""
    elsewhere = entry.with_name("elsewhere")
    entry.rename(elsewhere)
    entry.symlink_to(elsewhere)


def a_file(entry: Path) -> None:
    shutil.rmtree(entry)
    entry.write_text("a file")


def dangling(entry: Path) -> None:
    shutil.rmtree(entry)
    entry.symlink_to("nowhere")


def pipe_for_rows(entry: Path) -> None:
    (entry / ROWS).unlink()
    os.mkfifo(entry / ROWS)


def pipe_for_meta(entry: Path) -> None:
    (entry / META).unlink()
    os.mkfifo(entry / META)


def directory_for_rows(entry: Path) -> None:
    (entry / ROWS).unlink()
    (entry / ROWS).mkdir()


def nested_meta(entry: Path) -> None:
    (entry / META).write_text('{"files": ' + "[" * 100_000 + "]" * 100_000 + "}")


def surrogates_in_meta(entry: Path) -> None:
    (entry / META).write_text('{"files": ["\\ud800"], "meta.json": "\\ud800", "rows.arrow": "\\udfff"}')


def zeros(entry: Path) -> None:
    for name in (ROWS, META):
        (entry / name).write_bytes(bytes((entry / name).stat().st_size))


DAMAGES = [
    poisoned, of_another_key, of_another_user, older_rows, linked, a_file, dangling, pipe_for_rows, pipe_for_meta,
    directory_for_rows, nested_meta, surrogates_in_meta, zeros,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_rows_of_somebody_else_are_prepared_anew(damage: Callable[[Path], None]) -> None:
    first, _ = build_or_open(KEY, rows_of(1, 2, 3))
    expected = list(map(plain, first))
    entry = cache_directory() / KEY
    damage(entry)
    told: list[str] = []
    rows, hit = build_or_open(KEY, rows_of(1, 2, 3), told.append)
    assert (hit, list(map(plain, rows))) == (False, expected)
    assert told == [f"the prepared data in {entry} are damaged, and are prepared anew"]
    assert build_or_open(KEY, rows_of(66), told.append)[1]
    assert sorted(place.name for place in entry.iterdir()) == [META, ROWS]
    assert not entry.is_symlink()


def test_what_a_link_leads_to_is_not_deleted(tmp_path: Path) -> None:
    build_or_open(KEY, rows_of(1))
    shutil.rmtree(cache_directory() / KEY)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").write_text("of years")
    (cache_directory() / KEY).symlink_to(tmp_path / "mine")
    (cache_directory() / f"{KEY}.planted.partial").symlink_to(tmp_path / "mine")
    build_or_open(KEY, rows_of(1))
    assert (tmp_path / "mine" / "thesis").read_text() == "of years"
    assert [place.name for place in cache_directory().iterdir()] == [KEY]


def test_every_byte_decides() -> None:
    """A bit of each of them, and the rows are prepared anew."""
    build_or_open(KEY, rows_of(5))
    entry = cache_directory() / KEY
    whole = {name: (entry / name).read_bytes() for name in (ROWS, META)}
    for name, content in whole.items():
        for at in range(0, len(content), max(1, len(content) // 60)):
            changed = bytearray(content)
            changed[at] ^= 1 << (at % 8)
            (entry / name).write_bytes(changed)
            rows, hit = build_or_open(KEY, rows_of(5))
            assert (hit, numbers(rows)) == (False, [5]), (name, at)


def test_the_digest_is_of_the_bytes_that_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes the name of the rows once they are mapped is not looked at, and not trained on."""
    from fitune.data import cache

    build_or_open(KEY, rows_of(5))
    mapped = cache._mapped

    def swapped(file: Path) -> object:
        found = mapped(file)
        file.unlink()
        Writer(file).write([example(66)])
        return found

    monkeypatch.setattr(cache, "_mapped", swapped)
    rows, hit = build_or_open(KEY, rows_of(66))
    assert (hit, numbers(rows)) == (True, [5])


# -------------------------------------------------------------------------------------------------------------- the key


def test_the_key_is_the_users_own(tmp_path: Path) -> None:
    key = users_key()
    assert key_file() == tmp_path / "state" / "fitune" / "seal.key"
    assert (len(key), users_key()) == (BYTES, key)
    assert key_file().stat().st_mode & 0o777 == 0o600
    assert [place.name for place in key_file().parent.iterdir()] == ["seal.key"]


def as_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def as_link(file: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.chmod(0o640),
        lambda file: file.chmod(0o602),
        lambda file: file.write_bytes(b"short"),
        lambda file: file.write_bytes(b"x" * (BYTES + 1)),
        as_pipe,
        as_link,
    ],
)
def test_a_key_that_others_may_know_is_none(spoil: Callable[[Path], object]) -> None:
    before = users_key()
    build_or_open(KEY, rows_of(1))
    spoil(key_file())
    assert users_key() not in (before, b"short")
    assert len(users_key()) == BYTES
    told: list[str] = []
    assert not build_or_open(KEY, rows_of(1), told.append)[1]
    assert len(told) == 1


def test_without_a_key_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    told: list[str] = []
    rows, hit = build_or_open(KEY, rows_of(1, 2), told.append)
    assert (hit, numbers(rows)) == (False, [1, 2])
    assert told == [
        f"prepared data are not kept: {tmp_path / 'file' / 'fitune' / 'seal.key'} cannot be made: Not a directory. "
        "Set XDG_STATE_HOME to a directory of your own"
    ]
    assert not cache_directory().exists()
