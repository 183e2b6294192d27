"""Files and directories that are there whole or not at all, also after the power has failed.

What is written is written beside its place, flushed to the disk (fsync) and renamed, which a file system does at once;
then the directory that holds the name is flushed too. Beside its place it has a name that nobody can know before, and
is made there or not at all: what somebody else has put there, a link above all, is neither written to nor deleted
through.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import shutil
from pathlib import Path

PARTIAL, GONE = ".partial", ".gone"
"""Ends of the names of what is being written, and of what is being deleted; both begin with a dot."""

EXCLUSIVE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
"""How a file is opened that must not be there: a link in its place is there, wherever it leads."""


def write_file(path: Path, text: str) -> None:
    """Write a file in UTF-8, lines ended as on Linux, or leave it as it was; a link there gives way to the file. Raises
    `OSError`.
    """
    partial = _new_name(path, PARTIAL)
    number = os.open(partial, EXCLUSIVE, 0o666)
    try:
        with os.fdopen(number, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    flush(path.parent)


def begin(final: Path) -> Path:
    """A new, empty directory beside `final`, to write into; what earlier ones left is deleted. Raises `OSError`."""
    final.parent.mkdir(parents=True, exist_ok=True)
    for place in final.parent.iterdir():
        if place.name.startswith(f".{final.name}.") and place.name.endswith(PARTIAL) and not place.is_symlink():
            _delete(place)
    partial = _new_name(final, PARTIAL)
    partial.mkdir()
    return partial


def is_left_over(place: Path) -> bool:
    """Whether it is what a process left that died while it wrote or deleted: a file or a directory, never a link."""
    named = place.name.startswith(".") and place.name.endswith((PARTIAL, GONE))
    return named and not place.is_symlink() and (place.is_file() or place.is_dir())


def publish(partial: Path, final: Path) -> None:
    """Give a directory that is written its name, and delete what had it. Raises `OSError`.

    A directory cannot be renamed over one that is not empty: between the two renames, neither is there under this name.
    """
    for place in sorted(partial.rglob("*")):
        flush(place)
    flush(partial)
    gone = _aside(final) if os.path.lexists(final) else None
    partial.replace(final)
    flush(final.parent)
    if gone is not None:
        _delete(gone)


def discard(directory: Path) -> None:
    """Delete a directory; one that is half deleted is not there under its name. Raises `OSError`."""
    gone = _aside(directory)
    flush(directory.parent)
    _delete(gone)


def set_aside(what: Path) -> Path | None:
    """Rename a file or a directory, if it is there, to its name with the first number that is free; gives the new
    place.
    """
    if not os.path.lexists(what):
        return None
    places = (what.with_name(f"{what.name}.{number}") for number in itertools.count(1))
    place = next(place for place in places if not os.path.lexists(place))
    what.replace(place)
    flush(place.parent)
    return place


def sweep(directory: Path) -> None:
    """Delete what was being written or deleted in a directory when its process died."""
    for place in directory.glob(".*"):
        if place.name.endswith((PARTIAL, GONE)):
            _delete(place)


def flush(place: Path) -> None:
    """Flush a file, or the names in a directory, to the disk. Raises `OSError`."""
    try:
        number = os.open(place, os.O_RDONLY)
    except PermissionError:
        if os.name == "nt" and place.is_dir():  # where directories cannot be opened
            return
        raise
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _aside(directory: Path) -> Path:
    """Rename a directory to what is being deleted."""
    gone = _new_name(directory, GONE)
    directory.replace(gone)
    return gone


def _new_name(path: Path, end: str) -> Path:
    """A name beside a path's, which nobody can know before."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}{end}")


def _delete(place: Path) -> None:
    """Delete a directory with what is in it, or a file, or a link and not what it leads to; what cannot be, stays."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            place.unlink()
