"""What is deprecated: since which release, in which it is gone, and what to write in its place.

One record says it, of a key, a plugin, a hook or a function, for fitune's own and for anybody's: until `removed_in`
what it marks works and is told of, and from then on it is the error that says what to write, so that nothing has to be
changed on that day. Releases are those of the distribution that brings what is marked; of a single file, and of an
object that a program gives, they are fitune's.
"""

from __future__ import annotations

import functools
import importlib.metadata
import re
import sys
import types
import typing
import warnings
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from fitune._version import __version__
from fitune.errors import PluginError, Problem
from fitune.plugin.versions import OURS

F = TypeVar("F", bound=Callable[..., Any])

NUMBER = re.compile(r"\d+(\.\d+)*")
"""A release as marks name it: "0.4", "2.0.1"."""

SINGLE_FILE = "fitune_file_"
"""What the names begin with under which single files are modules."""

HOOK = "fitune_deprecation"
"""The attribute of a hook's specification that holds its mark."""

SCHEMA = "x-fitune-marks"
"""Under this, marks of a field stand in a JSON Schema until that is finished (`fitune.plugin.option_schema`)."""


class FtDeprecationWarning(DeprecationWarning):
    """Warns of what is deprecated in the code of a plugin or a program: a hook, a function, a name. Python shows it
    where code is run by hand, and pytest always; `pytest -W error::fitune.FtDeprecationWarning` makes it an error.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """The release of a distribution that is here."""

    name: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Deprecation:
    """That something is deprecated: until `removed_in` it works and is told of, and then it is an error that says what
    to do instead.
    """

    since: str
    """The release that first says so, e.g. "0.2"."""
    removed_in: str
    """The release in which it is an error."""
    instead: str
    """What to do instead: a sentence without a full stop, e.g. `Write loss = "all"`."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for releases that are none, or in the wrong order, and where nothing is said."""
        _must_be_in_order(self.since, self.removed_in)
        if len(self.instead.splitlines()) != 1:
            raise ValueError(f"a Deprecation has instead = {self.instead!r}: say in a line what to do instead")

    def is_gone(self, release: Release) -> bool:
        """Whether the release that is here is one without it."""
        from packaging.version import InvalidVersion, Version

        try:
            return Version(release.version) >= Version(self.removed_in)
        except InvalidVersion:  # the distribution's own fault, and no reason to end a run
            return False

    def told(self, what: str, release: Release) -> Problem:
        """What to say of it, as far as the release that is here: a notice, or what is wrong."""
        if self.is_gone(release):
            return Problem(what=f"{what} is gone since {release.name} {self.removed_in}", fix=self.instead)
        since = f"{what} is deprecated since {release.name} {self.since} and gone in {self.removed_in}"
        return Problem(what=since, fix=self.instead)

    def __get_pydantic_json_schema__(self, schema: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """The schema of the option's type, with this mark."""
        made = handler(schema)
        return {**made, SCHEMA: [*made.get(SCHEMA, ()), self]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Formerly:
    """The name that something had: until `removed_in` the old one is understood as the new one, and told of."""

    name: str
    """The old one."""
    since: str
    """The release that first has the new one."""
    removed_in: str
    """The release in which the old one is an error that names the new one."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for releases that are none, or in the wrong order, and where there is no name."""
        _must_be_in_order(self.since, self.removed_in)
        if not self.name.strip():
            raise ValueError("a Formerly has no name: give the one that was before")

    def in_favour_of(self, instead: str) -> Deprecation:
        """The old name's deprecation; `instead` says what to write."""
        return Deprecation(since=self.since, removed_in=self.removed_in, instead=instead)

    def __get_pydantic_json_schema__(self, schema: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """The schema of the option's type, with this mark."""
        made = handler(schema)
        return {**made, SCHEMA: [*made.get(SCHEMA, ()), self]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Marked:
    """What the record of every provider may say of its own age."""

    deprecated: Deprecation | None = None
    """Where it is deprecated as a whole. Nothing but a recipe that names it takes it then."""
    formerly: tuple[Formerly, ...] = ()
    """Names that it had, which recipes may still write behind `use`."""

    def is_called(self, names: Container[str]) -> bool:
        """Whether it has, or had, one of these names."""
        return getattr(self, "name", "") in names or any(mark.name in names for mark in self.formerly)


Mark = Deprecation | Formerly


def this_release() -> Release:
    """Which fitune this is."""
    return Release(name=OURS, version=__version__)


def release_of(distribution: str) -> Release:
    """Which release of a distribution is installed; 0 of one that is not."""
    if distribution == OURS:
        return this_release()
    try:
        return Release(name=distribution, version=importlib.metadata.version(distribution))
    except importlib.metadata.PackageNotFoundError:
        return Release(name=distribution, version="0")


def marks_of(hint: Any) -> tuple[Mark, ...]:
    """The marks of an option, by its type: `Annotated[int, Deprecation(...)]`, or that `| None`, e.g."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return tuple(mark for one in inner for mark in marks_of(one))
    marks = inner[1:] if origin is typing.Annotated else ()
    return tuple(mark for mark in marks if isinstance(mark, (Deprecation, Formerly)))


@functools.cache
def deprecated_fields(options: type) -> frozenset[str]:
    """The names of the fields of a class that are deprecated."""
    hints = typing.get_type_hints(options, include_extras=True)
    return frozenset(n for n, hint in hints.items() if any(isinstance(m, Deprecation) for m in marks_of(hint)))


def keys_of(options: type) -> tuple[str, ...]:
    """The keys of a table that is read as a dataclass, and then the names that they had."""
    hints = typing.get_type_hints(options, include_extras=True)
    former = [mark.name for hint in hints.values() for mark in marks_of(hint) if isinstance(mark, Formerly)]
    return (*hints, *former)


def wrong_marks(record: Any) -> str | None:
    """What is wrong with what a provider's record says of its own age."""
    if not isinstance(record.deprecated, (Deprecation, type(None))):
        return f"has deprecated = {record.deprecated!r}: give a fitune.Deprecation"
    former = record.formerly
    if not isinstance(former, tuple) or not all(isinstance(mark, Formerly) for mark in former):
        return f"has formerly = {former!r}: give a tuple of fitune.Formerly"
    return "is called now as it was formerly" if record.name in {mark.name for mark in former} else None


# ------------------------------------------------------------------------------------------------------ code that uses
_heard: ContextVar[list[str] | None] = ContextVar("heard", default=None)


@contextmanager
def hearing() -> Iterator[list[str]]:
    """While this lasts, what code is warned of is noted here as well, a line each, once."""
    lines: list[str] = []
    outer, token = _heard.get(), _heard.set(lines)
    try:
        yield lines
    finally:
        _heard.reset(token)
        if outer is not None:
            outer += [line for line in lines if line not in outer]


def warn(what: str, mark: Deprecation, distribution: str = OURS) -> None:
    """Warn whoever called the caller that it uses what is deprecated. Raises `PluginError` where it is gone."""
    release = release_of(distribution)
    said = mark.told(what, release).sentence()
    if mark.is_gone(release):
        raise PluginError(said)
    lines = _heard.get()
    if lines is not None and said not in lines:
        lines.append(said)
    warnings.warn(said, FtDeprecationWarning, stacklevel=3)


def deprecated(mark: Deprecation, distribution: str = OURS) -> Callable[[F], F]:
    """Marks a function whose releases are those of `distribution`: each call warns (`FtDeprecationWarning`), and from
    `removed_in` on raises `PluginError`.
    """

    def marked(function: F) -> F:
        @functools.wraps(function)
        def called(*arguments: Any, **named: Any) -> Any:
            warn(f"{_home(function)}.{function.__qualname__}()", mark, distribution)
            return function(*arguments, **named)

        return cast(F, called)

    return marked


def _home(function: Callable[..., Any]) -> str:
    """The module of a function; of one in a single file, that file's stem."""
    name = function.__module__
    return name.removeprefix(SINGLE_FILE).rpartition("_")[0] if name.startswith(SINGLE_FILE) else name


def deprecated_hook(mark: Deprecation) -> Callable[[F], F]:
    """Marks the specification of a hook, above `@hookspec`: plugins that implement it are warned of it as they are
    loaded, and from `removed_in` on are broken, with what to implement.
    """

    def marked(specification: F) -> F:
        setattr(specification, HOOK, mark)
        return specification

    return marked


def hook_mark(specification: object) -> Deprecation | None:
    """How the specification of a hook is marked."""
    found = getattr(specification, HOOK, None)
    return found if isinstance(found, Deprecation) else None


def former_names(module: str, names: Mapping[str, Formerly], distribution: str = OURS) -> Callable[[str], Any]:
    """A `__getattr__` for a module some of whose names were others: `names` are by the new ones. Whoever asks for an
    old one is warned (`FtDeprecationWarning`) and given what has its name now; from `removed_in` on `PluginError` is
    raised.
    """
    by_old = {mark.name: (new, mark) for new, mark in names.items()}

    def found(name: str) -> Any:
        if name not in by_old:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        new, mark = by_old[name]
        warn(f"{module}.{name}", mark.in_favour_of(f"It is called {module}.{new} now"), distribution)
        home: types.ModuleType = sys.modules[module]
        return getattr(home, new)

    return found


def _must_be_in_order(since: str, removed_in: str) -> None:
    for said in (since, removed_in):
        if not NUMBER.fullmatch(said):
            raise ValueError(f'"{said}" is no release: write it in numbers, e.g. "0.4"')
    first, last = ([int(part) for part in said.split(".")] for said in (since, removed_in))
    if first >= last:
        raise ValueError(f"deprecated since {since}, it cannot be gone in {removed_in}: give a later release")
