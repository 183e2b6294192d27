"""A TOML file with `--set` overrides: its values, and where each of them came from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli

from fitune.errors import RecipeError
from fitune.plugin.options import is_table
from fitune.plugin.reading import read_file
from fitune.recipe.renamed import is_of_run, place_of_run, translated
from fitune.recipe.shipped import meant
from fitune.recipe.toml import Key as Key
from fitune.recipe.toml import TooMuch, lines, loads

LONGEST = 32
"""Parts of an override's key, at most."""

LONGEST_SHOWN = 500
"""Characters of an override that an error repeats, at most."""


class TomlSource:
    """The values of a recipe file, overrides applied, and the place of each."""

    def __init__(self, path: Path, text: str, overrides: Sequence[str] = ()) -> None:
        """Parse `text` and apply overrides such as `train.steps=20`; a run's own recipe may be of 0.1. Raises
        `RecipeError`.
        """
        self.path = path
        self.text = text
        try:
            self.values: dict[str, Any] = loads(text)
        except TooMuch as error:
            raise RecipeError([f"{path}:{error.line}: no recipe: {error}"]) from error
        except tomli.TOMLDecodeError as error:
            message = error.msg.replace("Cannot overwrite a value", "this key is given a second time")
            raise RecipeError([f"{path}:{error.lineno}: not valid TOML: {message} (column {error.colno})"]) from error
        self.was: Path | None = None
        """Of a run's own recipe, the directory that it was written in; None where that is not known."""
        self.of_run = is_of_run(path)
        """Whether it is a run's own recipe, which an older release may have written."""
        if self.of_run:
            self.values, self.was = translated(self.values), place_of_run(path)
        self._overrides: dict[Key, str] = {}
        self._moved: dict[Key, Key] = {}
        """Keys that are others now, with what the file or an override calls them."""
        problems = [p for p in map(self._override, overrides) if p]
        if problems:
            raise RecipeError(problems)
        self._lines: dict[Key, int] | None = None

    @classmethod
    def read(cls, path: Path, overrides: Sequence[str] = ()) -> TomlSource:
        """Read a file. Raises `RecipeError` if it is not there, not text, or not TOML."""
        try:
            text = read_file(path).decode("utf-8-sig")  # editors on Windows put a mark in front
        except FileNotFoundError:
            raise RecipeError([f"{path}: no such file. {meant(path)}"]) from None
        except UnicodeDecodeError as error:
            raise RecipeError(
                [f"{path}: not UTF-8 text (byte {error.start}). Is it a recipe? Then save it as UTF-8"]
            ) from None
        except OSError as error:
            raise RecipeError([f"{path}: cannot be read: {error.strerror}. Give the path of a recipe"]) from None
        return cls(path, text, overrides)

    def move(self, old: Key, new: Key) -> None:
        """Have the value of a key under another one, in a table that is there; its place stays what it is."""
        *inside, name = old
        table = self._at(inside)
        *inside, now = new
        self._at(inside)[now] = table.pop(name)
        self._moved[new] = old

    def read_as(self, values: dict[str, Any], moved: dict[Key, Key]) -> None:
        """Have other values; `moved` are keys of theirs, each with the one that gave it."""
        self.values = values
        self._moved.update(moved)

    def overridden(self, key: Key) -> str | None:
        """The `--set` text that gave this key or a table around it, if one did; the last of several."""
        key = self._as_given(key)
        given = [text for k, text in self._overrides.items() if key[: len(k)] == k]
        return given[-1] if given else None

    def where(self, key: Key) -> tuple[int, str]:
        """The place of a key: its line, and `FILE:LINE: [table] key`; line 0 and the `--set` text that gave it.

        Of a key that is not there, the place is that of the nearest table around it, or the file alone.
        """
        override, now, key = self.overridden(key), key, self._as_given(key)
        if override is not None:
            return 0, f"--set {override}"
        if self._lines is None:
            self._lines = dict(lines(self.text))
        while key and key not in self._lines:
            inside = [text for k, text in self._overrides.items() if k[: len(key)] == key]
            if inside:  # a table that only overrides have made
                return 0, f"--set {inside[0]}"
            key, now = key[:-1], now[:-1]
        if not key:
            return 0, str(self.path)
        table, name = (key, "") if is_table(self._at(now)) else (key[:-1], key[-1])
        words = [f"[{'.'.join(str(part) for part in table if isinstance(part, str))}]"] if table else []
        line = self._lines[key]
        return line, " ".join([f"{self.path}:{line}:", *words, *([str(name)] if name else [])])

    def _as_given(self, key: Key) -> Key:
        """A key as the file or an override calls it."""
        for length in range(len(key), 0, -1):
            if (old := self._moved.get(key[:length])) is not None:
                return self._as_given((*old, *key[length:]))
        return key

    def _at(self, key: Sequence[str | int]) -> Any:
        value: Any = self.values
        for part in key:
            value = value[part]
        return value

    def _override(self, text: str) -> str | None:
        """Apply one override; gives the problem with it, if there is one."""
        name, equals, raw = text.partition("=")
        parts = [part.strip() for part in name.split(".")]
        if not equals or not all(parts) or len(parts) > LONGEST:
            return f"--set {text[:LONGEST_SHOWN]}: not an override. Write table.key=value, e.g. --set train.steps=20"
        key: Key = tuple(int(p) if p.isdecimal() and len(p) < 10 else p for p in parts)
        inside: Any = self.values
        for number, part in enumerate(key):
            path = ".".join(parts[:number])
            if isinstance(inside, list):
                if not isinstance(part, int) or part >= len(inside):
                    return f'--set {text}: "{path}" has no entry "{part}": it has {len(inside)}, counted from 0'
                if number == len(key) - 1:
                    return f"--set {text}: an entry as a whole cannot be set. Set a key of it, or the whole array"
            elif not isinstance(inside, dict):
                return f'--set {text}: "{path}" is not a table, so it has no key "{part}"'
            if number < len(key) - 1:
                inside = inside[int(part)] if isinstance(inside, list) else inside.setdefault(str(part), {})
        try:
            inside[str(key[-1])] = _value(raw)
        except TooMuch as error:
            return f"--set {text[:LONGEST_SHOWN]}: {error}"
        self._overrides.pop(key, None)  # the last of two stands last
        self._overrides[key] = text
        return None


def _value(raw: str) -> object:
    """What stands behind an equals sign: a TOML value, or else a bare word or a path, as a shell user types it."""
    try:
        values = loads(f"value = {raw}")
    except tomli.TOMLDecodeError:
        return raw
    return values["value"] if len(values) == 1 else raw
