"""Paths in the recipe of a run: as they are seen from the run's directory, so that both may move together."""

from __future__ import annotations

import os
from pathlib import Path


def seen_from(path: Path, base: Path | None) -> str:
    """An absolute path, relative to the directory `base` where both lie in one that is not the root; else as it is."""
    if base is None or not path.is_absolute():
        return str(path)
    try:
        common = Path(os.path.commonpath([path, base]))
    except ValueError:  # on two drives of Windows
        return str(path)
    if common == Path(common.anchor):
        return str(path)
    seen = Path(os.path.relpath(path, base))
    return seen.as_posix() if _same(base / seen, path) else str(path)  # a link on the way may lead elsewhere


def located(base: Path, path: Path, was: Path | None = None) -> Path:
    """The absolute path that is meant by one in a file of the directory `base`.

    Where nothing is there and the file was written in another directory, `was`: what lies as it lay to that one, or
    where it was then.
    """
    found = _absolute(base, path)
    if was is None or was == base or found.exists():
        return found
    relative = Path(os.path.relpath(path, was)) if path.is_absolute() else path
    return next((place for one in (base, was) if (place := _absolute(one, relative)).exists()), found)


def _absolute(base: Path, path: Path) -> Path:
    try:
        found = base / path.expanduser()
    except RuntimeError:  # the home of a user that there is not
        found = base / path
    if ".." not in found.parts:
        return found
    plain = Path(os.path.normpath(found))
    return plain if _same(plain, found) else found


def _same(one: Path, other: Path) -> bool:
    """Whether two paths lead to one place, be there something or not."""
    return os.path.realpath(one) == os.path.realpath(other)
