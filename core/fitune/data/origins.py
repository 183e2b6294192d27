"""Where prepared rows came from, as it holds wherever a project lies: by the paths of its sources, not by its own.

An entry of the cache names each file by the path of the source that gave it: which path that is, how many levels up
from it and what follows there. Whoever opens the entry has paths of the same kind, wherever they are, and finds the
files that the rows would come from now.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path, PurePath
from typing import Any, TypeAlias

Kept: TypeAlias = "str | list[Any]"
"""A file as an entry names it: as it is, or by the number of a path, levels up from it, and what follows."""


def paths_of(options: Any) -> Iterator[Path]:
    """The paths that options hold, in their order."""
    for field in fields(options):
        yield from paths_in(getattr(options, field.name))


def paths_in(value: object) -> Iterator[Path]:
    """The paths that an option is, or holds."""
    values = value if isinstance(value, tuple) else (value,)
    return (path for path in values if isinstance(path, Path))


def pattern_of(path: Path) -> str:
    """What of a path says which files are meant, wherever they are: its name, or all from where a pattern begins."""
    parts = path.parts
    first = next((number for number, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return PurePath(*parts[first:]).as_posix()


def kept(file: str, places: Sequence[Path]) -> Kept:
    """A file by the path that it is nearest to; as it is where it is below none, e.g. a data set's name."""
    best: list[Any] | None = None
    least = 0
    for number, place in enumerate(places):
        for up, above in enumerate((place, *place.parents)):
            if above == Path(above.anchor):
                break
            if file == str(above) or file.startswith(f"{above}{os.sep}"):
                if len(above.parts) > least:
                    best, least = [number, up, file[len(str(above)) + 1 :]], len(above.parts)
                break
    return file if best is None else best


def found(name: Kept, places: Sequence[Path]) -> str:
    """The file again, by paths of the same kind. Raises `ValueError`, `LookupError` or `TypeError` for another name."""
    if isinstance(name, str):
        return name
    number, up, rest = name
    place = places[number]
    above = (place, *place.parents)[up]
    return str(above / rest) if rest else str(above)
