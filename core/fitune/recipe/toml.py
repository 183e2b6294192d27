"""TOML that anybody may have written: parsed in bounded time, or refused; and the line of each of its keys.

tomli gives values without positions, and takes its time over what no recipe holds: it calls itself for each level of
arrays, and looks at every part of a dotted key as often as the key has parts. Of a document that is valid, statements
end at the ends of lines that are in no string and in no bracket: each is parsed by itself, so that all is linear.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import tomli

from fitune.plugin.options import is_table

Key = tuple["str | int", ...]
"""A path into a document: names of keys, and positions in arrays of tables."""

LARGEST = 1 << 20
"""Characters of a recipe, at most: a thousand times those of a usual one."""

DEEPEST = 32
"""Levels of tables and arrays, at most."""

PARTS = re.compile(rf"""(?<![\w."'-])(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){{{DEEPEST},}}""")
"""A dotted key of more parts."""

DIGITS = re.compile(r"(?<![\w.])[+-]?\d[\d_]{400,}(?![\w.])")
"""A whole number of hundreds of digits, which takes long to be read."""

TOKENS = re.compile(
    r'''"""(?:[^\\]|\\.)*?"""(?:"{0,2})|\'\'\'.*?\'\'\'(?:'{0,2})'''  # texts of several lines
    r"""|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|\#[^\n]*|[\[\]{}\n]""",
    re.S,
)
"""All that may hold the end of a line, or a bracket that is none."""


class TooMuch(ValueError):
    """A document that is more than any recipe: `line` says where, counted from 1."""

    def __init__(self, what: str, line: int) -> None:
        super().__init__(what)
        self.line = line


def loads(text: str) -> dict[str, Any]:
    """The values of a document. Raises `tomli.TOMLDecodeError`, and `TooMuch` for one that is more than a recipe."""
    if len(text) > LARGEST:
        raise TooMuch(f"it has {len(text):,} characters, and a recipe has at most {LARGEST:,}", 1)
    for form, what in ((PARTS, f"a key has more than {DEEPEST} parts"), (DIGITS, "a number has hundreds of digits")):
        if (found := form.search(text)) is not None and not _is_text(text, found.start()):
            raise TooMuch(what, text.count("\n", 0, found.start()) + 1)
    try:
        values = tomli.loads(text)
    except RecursionError:
        raise TooMuch(f"its values are nested more than {DEEPEST} deep", 1) from None
    if (wrong := _beyond(values)) is not None:
        key, what = wrong
        known = dict(lines(text))
        raise TooMuch(what, next((known[at] for end in range(len(key), 0, -1) if (at := key[:end]) in known), 1))
    return values


def lines(text: str) -> Iterator[tuple[Key, int]]:
    """Each key of a valid document with the line, counted from 1, on which the statement that brings it starts."""
    seen: set[Key] = set()
    number: dict[Key, int] = {}
    table: Key = ()
    for line, statement in _statements(text):
        values = tomli.loads(statement)
        if statement.lstrip().startswith("["):
            table = _table(values, number)
            found: Iterator[Key] = (table[:length] for length in range(1, len(table) + 1))
        else:
            found = (table + key for key in _keys(values))
        for key in found:
            if key not in seen:
                seen.add(key)
                yield key, line


def _is_text(text: str, place: int) -> bool:
    """Whether a place is in a string or a comment."""
    for token in TOKENS.finditer(text):
        if token.start() >= place:
            return False
        if token.end() > place:
            return True
    return False


def _beyond(values: dict[str, Any]) -> tuple[Key, str] | None:
    """The first value that is nested too deep, or a number that is none of TOML's, and what is wrong with it."""
    waiting: list[tuple[Key, Any]] = [((), values)]
    while waiting:
        key, value = waiting.pop()
        inner: list[tuple[str | int, Any]] = []
        if isinstance(value, dict):
            inner = [*value.items()]
        elif isinstance(value, list):
            inner = [*enumerate(value)]
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            return key, "a whole number has more than 64 bits"
        if inner and len(key) >= DEEPEST:
            return key, f"its values are nested more than {DEEPEST} deep"
        waiting += [((*key, name), one) for name, one in reversed(inner)]
    return None


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Each statement of a document with the line on which it starts, comments and empty lines before it included."""
    depth, begin, line, first = 0, 0, 1, 1
    for token in TOKENS.finditer(text):
        found = token[0]
        if found in ("[", "{"):
            depth += 1
        elif found in ("]", "}"):
            depth -= 1
        elif found == "\n":
            line += 1
            if depth == 0:
                yield first, text[begin : token.end()]
                begin, first = token.end(), line
        else:
            line += found.count("\n")
    yield first, text[begin:]


def _table(values: Mapping[str, Any], number: dict[Key, int]) -> Key:
    """The path of the table that a header begins; `number` counts the tables of each array."""
    table: Key = ()
    while values:
        ((name, inner),) = values.items()
        table = (*table, name)
        if isinstance(inner, list):
            number[table] = number.get(table, -1) + 1
            inner = {}
        if table in number:
            table = (*table, number[table])
        values = inner
    return table


def _keys(values: Any, key: Key = ()) -> Iterator[Key]:
    if key:
        yield key
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield from _keys(value, (*key, name))
    elif isinstance(values, list) and is_table(values):
        for position, value in enumerate(values):
            yield from _keys(value, (*key, position))
