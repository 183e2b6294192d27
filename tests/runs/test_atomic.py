"""Files and directories that are there whole or not at all, wherever the process that writes them dies."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from fitune.runs.atomic import begin, discard, publish, set_aside, sweep, write_file


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


def test_what_a_dead_process_left_of_a_file_is_written_over(tmp_path: Path) -> None:
    (tmp_path / ".f.json.partial").write_text("much longer than what is written now")
    write_file(tmp_path / "f.json", "short")
    assert (tmp_path / "f.json").read_text() == "short"
    assert names(tmp_path) == ["f.json"]


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
    assert names(final.parent) == [".d.partial"]
    publish(partial, final)
    assert names(final.parent) == ["d"]
    assert content(final) == "one"


def test_begin_empties_what_a_dead_process_left(tmp_path: Path) -> None:
    left = written(tmp_path / "d", "left")
    assert begin(tmp_path / "d") == left
    assert names(left) == []


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
    assert names(tmp_path) == [".d.gone"]
    publish(written(final, "two"), final)
    discard(final)
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
