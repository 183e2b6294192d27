"""Files and directories that are there whole or not at all, also after the power has failed.

What is written is written beside its place, flushed to the disk (fsync) and renamed, which a file system does at once;
then the directory that holds the name is flushed too.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from pathlib import Path

PARTIAL, GONE = ".partial", ".gone"
"""Ends of the names of what is being written, and of what is being deleted; both begin with a dot."""


def write_file(path: Path, text: str) -> None:
    """Write a file in UTF-8, lines ended as on Linux, or leave it as it was. Raises `OSError`."""
    partial = path.with_name(f".{path.name}{PARTIAL}")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as stream:
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
    """A new, empty directory beside `final`, to write into. Raises `OSError`."""
    partial = final.with_name(f".{final.name}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def publish(partial: Path, final: Path) -> None:
    """Give a directory that is written its name, and delete what had it. Raises `OSError`.

    A directory cannot be renamed over one that is not empty: between the two renames, neither is there under this name.
    """
    for place in sorted(partial.rglob("*")):
        flush(place)
    flush(partial)
    gone = _aside(final) if final.exists() else None
    partial.replace(final)
    flush(final.parent)
    if gone is not None:
        shutil.rmtree(gone, ignore_errors=True)


def discard(directory: Path) -> None:
    """Delete a directory; one that is half deleted is not there under its name. Raises `OSError`."""
    gone = _aside(directory)
    flush(directory.parent)
    shutil.rmtree(gone, ignore_errors=True)


def set_aside(directory: Path) -> Path | None:
    """Rename a directory, if it is there, to its name with the first number that is free; gives the new place."""
    if not directory.exists():
        return None
    place = next(p for n in itertools.count(1) if not (p := directory.with_name(f"{directory.name}.{n}")).exists())
    directory.replace(place)
    flush(place.parent)
    return place


def sweep(directory: Path) -> None:
    """Delete what was being written or deleted in a directory when its process died."""
    for place in directory.glob(".*"):
        if place.name.endswith((PARTIAL, GONE)):
            if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    place.unlink()


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
    gone = directory.with_name(f".{directory.name}{GONE}")
    shutil.rmtree(gone, ignore_errors=True)
    directory.replace(gone)
    return gone
