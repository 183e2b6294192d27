"""A TOML file with `--set` overrides: its values, and where each of them came from.

tomli gives values without positions. They are found without a second TOML grammar: of a valid document, a prefix of
lines parses exactly if it ends between two statements, so the statement that brings a key starts after the last
shorter prefix that parsed. This reads the document once a line, and only when a position is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli

from fitune.errors import RecipeError

Key = tuple["str | int", ...]
"""A path into a document: names of keys, and positions in arrays of tables."""


class TomlSource:
    """The values of a recipe file, overrides applied, and the place of each."""

    def __init__(self, path: Path, text: str, overrides: Sequence[str] = ()) -> None:
        """Parse `text` and apply overrides such as `train.steps=20`. Raises `RecipeError`."""
        self.path = path
        self.text = text
        try:
            self.values: dict[str, Any] = tomli.loads(text)
        except tomli.TOMLDecodeError as error:
            raise RecipeError([f"{path}:{error.lineno}: not valid TOML: {error.msg} (column {error.colno})"]) from error
        self._overrides: dict[Key, str] = {}
        problems = [p for p in map(self._override, overrides) if p]
        if problems:
            raise RecipeError(problems)
        self._lines: dict[Key, int] | None = None

    @classmethod
    def read(cls, path: Path, overrides: Sequence[str] = ()) -> TomlSource:
        """Read a file. Raises `RecipeError` if it is not there, not text, or not TOML."""
        try:
            text = path.read_bytes().decode()
        except FileNotFoundError:
            raise RecipeError(
                [f"{path}: no such file. Give the path of a recipe, e.g. recipes/quickstart.toml"]
            ) from None
        except UnicodeDecodeError as error:
            raise RecipeError([f"{path}: not UTF-8 text (byte {error.start}). Is it a recipe?"]) from None
        except OSError as error:
            raise RecipeError([f"{path}: cannot be read: {error.strerror}"]) from None
        return cls(path, text, overrides)

    def overridden(self, key: Key) -> str | None:
        """The `--set` text that gave this key or a table around it, if one did."""
        return next((text for k, text in self._overrides.items() if key[: len(k)] == k), None)

    def where(self, key: Key) -> str:
        """The place of a key, or of the nearest table around it: `FILE:LINE: [table] key`, or the `--set` text."""
        override = self.overridden(key)
        if override is not None:
            return f"--set {override}"
        if self._lines is None:
            self._lines = dict(_lines(self.text))
        line = next((self._lines[key[:n]] for n in range(len(key), 0, -1) if key[:n] in self._lines), 1)
        table, name = (key[:-1], key[-1]) if key else ((), "")
        if isinstance(name, int) or isinstance(_at(self.values, key), dict):
            table, name = key, ""
        place = f"{self.path}:{line}:"
        if table:
            place += f" [{'.'.join(str(part) for part in table if isinstance(part, str))}]"
        return f"{place} {name}".rstrip()

    def _override(self, text: str) -> str | None:
        name, equals, raw = text.partition("=")
        if not equals or not name.strip():
            return f"--set {text}: not an override. Write table.key=value, e.g. --set train.steps=20"
        key: Key = tuple(int(p) if p.isdigit() else p for p in name.strip().split("."))
        try:
            value = tomli.loads(f"value = {raw}")["value"]
        except tomli.TOMLDecodeError:
            value = raw  # a bare word or a path, as a shell user types it
        inside: Any = self.values
        for part in key[:-1]:
            if isinstance(inside, list) and isinstance(part, int) and part < len(inside):
                inside = inside[part]
            elif isinstance(inside, dict) and isinstance(part, str):
                inside = inside.setdefault(part, {})
            else:
                return f'--set {text}: there is no "{part}" in this recipe to set a key of'
        last = key[-1]
        if not isinstance(inside, dict) or not isinstance(last, str):
            return f'--set {text}: "{last}" cannot be set there. Name a key of a table, e.g. train.steps'
        inside[last] = value
        self._overrides[key] = text
        return None


def _at(values: Any, key: Key) -> object:
    """What stands at a key; None where there is nothing."""
    for part in key:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return None
    return values


def _keys(values: Any, key: Key = ()) -> Iterator[Key]:
    if key:
        yield key
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield from _keys(value, (*key, name))
    elif isinstance(values, list) and values and all(isinstance(v, Mapping) for v in values):
        for position, value in enumerate(values):
            yield from _keys(value, (*key, position))


def _lines(text: str) -> Iterator[tuple[Key, int]]:
    """Each key of a valid document with the line, counted from 1, on which the statement that brings it starts."""
    seen: set[Key] = set()
    lines = text.splitlines(keepends=True)
    start = 0
    for end in range(1, len(lines) + 1):
        try:
            values = tomli.loads("".join(lines[:end]))
        except tomli.TOMLDecodeError:
            continue
        for key in _keys(values):
            if key not in seen:
                seen.add(key)
                yield key, start + 1
        start = end
