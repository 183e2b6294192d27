"""Files and directories that are there whole or not at all, wherever the process that writes them dies."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path

import pytest

from fitune.runs.atomic import begin, discard, is_left_over, publish, set_aside, sweep, write_file


class Death(BaseException):
    """The process ends here."""


def names(directory: Path) -> list[str]:
    return sorted(place.name for place in directory.iterdir())


def written(final: Path, text: str) -> Path:
    """A directory that is written and has no name yet."""
    partial = begin(final)
    (partial / "inner").mkdir()
    (partial / "inner" / "file").write_text(text)
    return partial


def content(final: Path) -> str:
    return (final / "inner" / "file").read_text()


def dies_at(monkeypatch: pytest.MonkeyPatch, rename: int) -> None:
    """From this renaming on, counted from 1, none is made."""
    made = 0
    replace = Path.replace

    def counted(place: Path, target: Path) -> Path:
        nonlocal made
        made += 1
        if made >= rename:
            raise Death
        return replace(place, target)

    monkeypatch.setattr(Path, "replace", counted)


# ------------------------------------------------------------------------------------------------------------ files


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    for text in ("one", "zwei ü\n"):
        write_file(file, text)
        assert file.read_bytes() == text.encode()
        assert names(tmp_path) == ["f.json"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_file_that_cannot_be_written_is_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    file = tmp_path / "f.json"
    write_file(file, "before")

    def fails(number: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(type(error)):
        write_file(file, "after")
    assert file.read_text() == "before"
    assert names(tmp_path) == ["f.json"]


PLANTED = (".f.json.partial", ".f.json.0123456789abcdef.partial", "f.json")


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("there", [True, False])
def test_no_file_is_written_through_a_link(tmp_path: Path, name: str, there: bool) -> None:
    """On 0.1 the first of them was, since its name was known."""
    precious, run = tmp_path / "precious", tmp_path / "run"
    run.mkdir()
    if there:
        precious.write_text("mine")
    (run / name).symlink_to(precious)
    write_file(run / "f.json", "short")
    assert (run / "f.json").read_text() == "short"
    assert not (run / "f.json").is_symlink()
    assert precious.exists() is there
    assert not there or precious.read_text() == "mine"


def test_a_name_that_was_guessed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there is neither followed nor written over, even if somebody knew the name."""
    precious = tmp_path / "precious"
    monkeypatch.setattr("fitune.runs.atomic.secrets.token_hex", lambda size: "known")
    (tmp_path / ".f.json.known.partial").symlink_to(precious)
    with pytest.raises(FileExistsError):
        write_file(tmp_path / "f.json", "text")
    assert not precious.exists()
    (tmp_path / ".d.known.partial").symlink_to(tmp_path)
    with pytest.raises(FileExistsError):
        begin(tmp_path / "d")


def test_a_file_may_be_read_by_whom_the_user_allows(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "f.json", "text")
    finally:
        os.umask(before)
    assert os.name == "nt" or (tmp_path / "f.json").stat().st_mode & 0o777 == 0o640


def test_what_is_renamed_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content before the name, and the directory that holds the name after it."""
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def flushed(number: int) -> None:
        order.append("directory" if os.path.isdir(f"/proc/self/fd/{number}") else "file")  # noqa: PTH112
        fsync(number)

    def renamed(place: Path, target: Path) -> Path:
        order.append("rename")
        return replace(place, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", renamed)
    write_file(tmp_path / "f.json", "text")
    assert order == ["file", "rename", "directory"]
    partial = written(tmp_path / "d", "text")
    order.clear()
    publish(partial, tmp_path / "d")
    # what is in it (a directory and its file), itself, its new name, and the directory that holds the name
    assert sorted(order[:3]) == ["directory", "directory", "file"]
    assert order[3:] == ["rename", "directory"]


# ------------------------------------------------------------------------------------------------------ directories


def test_a_directory_has_its_name_once_it_is_whole(tmp_path: Path) -> None:
    final = tmp_path / "deep" / "d"
    partial = written(final, "one")
    (left,) = names(final.parent)
    assert re.fullmatch(r"\.d\.[0-9a-f]{16}\.partial", left)
    publish(partial, final)
    assert names(final.parent) == ["d"]
    assert content(final) == "one"


def test_begin_deletes_what_a_dead_process_left(tmp_path: Path) -> None:
    left, other = written(tmp_path / "d", "left"), written(tmp_path / "d2", "left")
    found = begin(tmp_path / "d")
    assert found != left
    assert names(found) == []
    assert names(tmp_path) == sorted([found.name, other.name])


def test_begin_follows_no_link(tmp_path: Path) -> None:
    """On 0.1 a directory was made where a link led, and what was saved went there."""
    precious, run = tmp_path / "precious", tmp_path / "run"
    precious.mkdir()
    (precious / "file").write_text("")
    run.mkdir()
    for name in (".d.partial", ".d.0123456789abcdef.partial", ".d.gone"):
        (run / name).symlink_to(precious)
    publish(written(run / "d", "one"), run / "d")
    publish(written(run / "d", "two"), run / "d")
    assert content(run / "d") == "two"
    assert names(precious) == ["file"]


def test_publish_replaces_a_link_and_not_what_it_leads_to(tmp_path: Path) -> None:
    precious, run = tmp_path / "precious", tmp_path / "run"
    precious.mkdir()
    (precious / "file").write_text("")
    run.mkdir()
    (run / "d").symlink_to(precious)
    publish(written(run / "d", "one"), run / "d")
    assert content(run / "d") == "one"
    assert names(run) == ["d"]
    assert names(precious) == ["file"]


def test_links_are_no_left_overs(tmp_path: Path) -> None:
    (tmp_path / ".f.partial").symlink_to(tmp_path / "nowhere")
    (tmp_path / ".g.gone").mkdir()
    (tmp_path / ".h.partial").write_text("")
    assert [place.name for place in sorted(tmp_path.iterdir()) if is_left_over(place)] == [".g.gone", ".h.partial"]


def test_publish_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    final = tmp_path / "d"
    publish(written(final, "one"), final)
    (final / "more").write_text("")
    publish(written(final, "two"), final)
    assert content(final) == "two"
    assert names(final) == ["inner"]
    assert names(tmp_path) == ["d"]


@pytest.mark.parametrize(("rename", "found"), [(1, "one"), (2, None), (3, "two")])
def test_a_process_that_dies_while_it_publishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rename: int, found: str | None
) -> None:
    """The old, none between the two renamings, the new: never a mixture; and nothing is left once it is swept."""
    final = tmp_path / "d"
    publish(written(final, "one"), final)
    partial = written(final, "two")
    with monkeypatch.context() as patch:
        dies_at(patch, rename)
        try:
            publish(partial, final)
        except Death:
            assert rename < 3
    assert (content(final) if final.exists() else None) == found
    sweep(tmp_path)
    assert names(tmp_path) == ([] if found is None else ["d"])
    publish(written(final, "three"), final)
    assert content(final) == "three"


def test_what_is_discarded_is_gone_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final = tmp_path / "d"
    publish(written(final, "one"), final)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **named: None)  # it dies before anything is deleted
        discard(final)
    (gone,) = names(tmp_path)
    assert re.fullmatch(r"\.d\.[0-9a-f]{16}\.gone", gone)
    publish(written(final, "two"), final)
    discard(final)
    assert names(tmp_path) == [gone]
    sweep(tmp_path)
    assert names(tmp_path) == []


def test_what_is_not_there_cannot_be_discarded(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        discard(tmp_path / "d")


def test_what_is_set_aside_takes_the_first_free_number(tmp_path: Path) -> None:
    final = tmp_path / "adapter"
    assert set_aside(final) is None
    (tmp_path / "adapter.2").mkdir()
    for number in (1, 3):
        publish(written(final, str(number)), final)
        place = set_aside(final)
        assert place == tmp_path / f"adapter.{number}"
        assert content(place) == str(number)
    assert names(tmp_path) == ["adapter.1", "adapter.2", "adapter.3"]


def test_sweep_deletes_what_was_at_work_alone(tmp_path: Path) -> None:
    kept = [".hidden", ".lock.json", "d", "d.partial", "d.gone"]
    for name in kept:
        (tmp_path / name).mkdir()
    (tmp_path / "d" / ".inner.partial").write_text("")  # of another directory's owner
    written(tmp_path / "x", "half")
    (tmp_path / ".y.gone").mkdir()
    (tmp_path / ".f.json.partial").write_text("")
    sweep(tmp_path)
    assert names(tmp_path) == sorted(kept)
    assert names(tmp_path / "d") == [".inner.partial"]


def test_sweep_follows_no_link(tmp_path: Path) -> None:
    precious = tmp_path / "elsewhere"
    precious.mkdir()
    (precious / "file").write_text("")
    run = tmp_path / "run"
    run.mkdir()
    (run / ".d.gone").symlink_to(precious)
    sweep(run)
    assert names(run) == []
    assert names(precious) == ["file"]


def test_sweep_of_a_directory_that_is_not_there(tmp_path: Path) -> None:
    sweep(tmp_path / "nowhere")
    assert names(tmp_path) == []
