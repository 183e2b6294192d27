"""Options that are deprecated, or had other names, in a table that a recipe gives (`fitune.plugin.deprecation`)."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeAlias, cast

from fitune.errors import Problem
from fitune.plugin.deprecation import Deprecation, Formerly, Release, marks_of, this_release
from fitune.plugin.options import default_text, toml_text

Given: TypeAlias = Callable[[str], bool]


@dataclass(slots=True)
class Aged:
    """A table as it is read now. Keys are dotted, relative to the table."""

    table: dict[str, Any] = field(default_factory=dict)
    """Old names are new ones in it, and what is gone is left out."""
    moved: dict[str, str] = field(default_factory=dict)
    """Old names that are in the table, each with the new one."""
    notices: list[Problem] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def aged(
    options: type,
    table: Mapping[str, Any],
    release: Release | None = None,
    *,
    of_run: bool = False,
    over: Given = lambda key: False,
) -> Aged:
    """What is to be read of a table, and what is to be told of it. `release` is whose options these are, by default
    fitune's. Of a run's own recipe (`of_run`), which an older release may have written with every choice explicit, old
    names and options at their defaults are understood for ever, and nothing is told. `over` says whether a key was laid
    over the table, so that it counts where an old and a new name are both given.
    """
    found = Aged()
    reader = _Reader(found=found, release=release or this_release(), of_run=of_run, over=over)
    found.table = reader.read(options, table, "")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reader:
    found: Aged
    release: Release
    of_run: bool
    over: Given

    def read(self, options: type, table: Mapping[str, Any], at: str) -> dict[str, Any]:
        """A table without old names and what is gone; those within it too."""
        made = dict(table)
        for name, hint in typing.get_type_hints(options, include_extras=True).items():
            for mark in marks_of(hint):
                if isinstance(mark, Formerly):
                    self._rename(made, name, mark, at)
                elif name in made:
                    self._tell(made, options, name, mark, at)
            if name in made:
                made[name] = self._within(hint, made[name], f"{at}{name}")
        return made

    def _within(self, hint: Any, value: Any, at: str) -> Any:
        """A value of this type, with the tables in it read so."""
        origin, inner = typing.get_origin(hint), typing.get_args(hint)
        if isinstance(value, dict) and isinstance(hint, type) and is_dataclass(hint):
            return self.read(hint, value, f"{at}.")
        if origin in (typing.Annotated, typing.Union, types.UnionType):
            for one in inner[:1] if origin is typing.Annotated else inner:
                value = self._within(one, value, at)
        elif isinstance(value, list) and origin in (tuple, list, Sequence):
            return [self._within(inner[0], one, f"{at}.{number}") for number, one in enumerate(value)]
        elif isinstance(value, dict) and origin in (dict, Mapping):
            return {key: self._within(inner[1], one, f"{at}.{key}") for key, one in value.items()}
        return value

    def _rename(self, table: dict[str, Any], new: str, mark: Formerly, at: str) -> None:
        if mark.name not in table:
            return
        value, old = table.pop(mark.name), f"{at}{mark.name}"
        deprecation = mark.in_favour_of(f'Write "{new}"')
        if new in table and self.over(old) == self.over(f"{at}{new}"):
            what = f'"{mark.name}" is what "{new}" was called before, which is given too'
            self.found.problems.append(Problem(key=old, what=what, fix="Remove it"))
            return
        if not self.of_run:
            self._note(old, deprecation, mark.name)
        if new not in table or self.over(old):
            table[new] = value
            self.found.moved[old] = f"{at}{new}"

    def _tell(self, table: dict[str, Any], options: type, name: str, mark: Deprecation, at: str) -> None:
        (one,) = (f for f in fields(cast(Any, options)) if f.name == name)
        if self.of_run and toml_text(table[name]) == default_text(one):
            del table[name]  # nobody asked for it
            return
        if mark.is_gone(self.release):
            del table[name]
        elif self.of_run:
            return
        self._note(f"{at}{name}", mark, name)

    def _note(self, key: str, mark: Deprecation, name: str) -> None:
        told = self.found.problems if mark.is_gone(self.release) else self.found.notices
        told.append(replace(mark.told(f'"{name}"', self.release), key=key))
