"""The code of a plugin, as a digest: another digest, and it may do something else, whatever its version says."""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import sys
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

from fitune.plugin.digest import digest_of
from fitune.plugin.provided import Plugin

SUFFIXES = (".py", ".jinja", ".so", ".pyd")
"""What files end with that a plugin may run."""

OF_EDITABLE = ("__editable__", "_editable_impl")
"""What modules' names begin with that only lead to where the code is."""


def place_of(module: str) -> str | None:
    """The directory of a module's outermost package, or the file of a module that stands alone."""
    top = sys.modules.get(module.partition(".")[0])
    paths = list(getattr(top, "__path__", ()))
    if paths:
        return str(paths[0])
    try:
        return inspect.getsourcefile(sys.modules[module])
    except (KeyError, TypeError):  # made while the program runs
        return None


def code_of(place: str) -> str:
    """A digest of a file, or of all code below a directory. Raises `OSError`."""
    return _package(place) if Path(place).is_dir() else digest_of(Path(place))


def code_behind(*things: object) -> list[str]:
    """Of the packages, or single files, that functions and classes come from. Raises `OSError`."""
    modules = set()
    for thing in things:
        while isinstance(thing, partial):
            thing = thing.func
        modules.add(getattr(thing, "__module__", None) or type(thing).__module__)
    return [code_of(place) for place in sorted(set(filter(None, map(place_of, modules))))]


def code_of_plugin(plugin: Plugin) -> str | None:
    """Of all code that a plugin was installed with, wherever that lies: a copy of it has the same. Of a single file it
    is that of the text that ran; None for what has no file. Raises `OSError`.
    """
    if plugin.digest is not None or plugin.module is None:
        return plugin.digest
    files = {path.resolve(): name for path, name in _installed(plugin.distribution)}
    place = place_of(plugin.module)
    if place is not None:
        files |= {path.resolve(): path.relative_to(Path(place).parent).as_posix() for path in _below(Path(place))}
    if not files:
        return None
    return _digest(sorted((name, path) for path, name in files.items()))


def _installed(distribution: str | None) -> Iterator[tuple[Path, str]]:
    """The code that a distribution's own list of files names, each by its name there; none where there is no list."""
    if distribution is None:
        return
    try:
        files = importlib.metadata.distribution(distribution).files or ()
    except Exception:  # what an interrupted uninstallation left has no metadata
        return
    for file in files:
        if file.suffix in SUFFIXES and not file.name.startswith(OF_EDITABLE):
            path = Path(str(file.locate()))
            if path.is_file():
                yield path, file.as_posix()


def _below(place: Path) -> Iterator[Path]:
    if not place.is_dir():
        yield place
        return
    yield from (path for path in place.rglob("*") if path.suffix in SUFFIXES and path.is_file())


@cache  # a process loads a package once, but a recipe's single file anew with each registry
def _package(place: str) -> str:
    return _digest(sorted((path.relative_to(place).as_posix(), path) for path in _below(Path(place))))


def _digest(named: list[tuple[str, Path]]) -> str:
    return hashlib.sha256("\n".join(f"{name} {digest_of(path)}" for name, path in named).encode()).hexdigest()
