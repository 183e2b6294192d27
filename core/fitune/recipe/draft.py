"""A recipe that is being written: values table by table, each with a comment, and the text that they make."""

from __future__ import annotations

import dataclasses
import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fitune.plugin.options import toml_text
from fitune.plugin.recipe import Checkpoint, Evaluation, General, Train

TABLES = ("", "model", "adapter", "objective", "memory", "data", "train", "eval", "checkpoint")
"""In the order in which a recipe has them."""

CORE: Mapping[str, Any] = {"": General, "train": Train, "eval": Evaluation, "checkpoint": Checkpoint}

ARRAYS = {"memory": ("strategy",), "data": ("source", "stage"), "eval": ("source",)}
"""Arrays of tables, each behind the table that it belongs to."""

WIDTH = 100
"""Of lines of comment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A table of an array."""

    values: Mapping[str, Any]
    comment: str = ""


@dataclass(slots=True, kw_only=True)
class Draft:
    """What a recipe will say."""

    head: list[str] = field(default_factory=list)
    """Paragraphs of comment at its top."""
    tables: dict[str, dict[str, tuple[Any, str]]] = field(default_factory=dict)
    """Each key's value and comment."""
    comments: dict[str, str] = field(default_factory=dict)
    """Comments above tables."""
    arrays: dict[str, list[Entry]] = field(default_factory=dict)
    """By their dotted name, e.g. `memory.strategy`."""
    differs: list[str] = field(default_factory=list)
    """What is different, in sentences without their full stop."""
    files: dict[str, str] = field(default_factory=dict)
    """Files that are to stand beside it, by their names."""

    def set(self, table: str, key: str, value: Any, comment: str = "") -> None:
        """Say the value of a key."""
        self.tables.setdefault(table, {})[key] = (value, comment)

    def says(self, table: str, key: str) -> bool:
        """Whether it says that key."""
        return key in self.tables.get(table, {})

    def value(self, table: str, key: str) -> Any:
        """What it says; None where it does not."""
        return self.tables.get(table, {}).get(key, (None,))[0]

    def add(self, array: str, values: Mapping[str, Any], comment: str = "") -> None:
        """Add a table to an array, unless the same stands there."""
        entries = self.arrays.setdefault(array, [])
        if values not in [entry.values for entry in entries]:
            entries.append(Entry(values=dict(values), comment=comment))

    def text(self) -> str:
        """The recipe."""
        blocks = [_comment(self.head)] if self.head else []
        for table in TABLES:
            body = _body(_in_order(table, self.tables.get(table, {})))
            if body or table in self.comments:
                above = _comment([self.comments[table]]) if table in self.comments else []
                blocks.append([*above, *([f"[{table}]"] if table else []), *body])
            for name in ARRAYS.get(table, ()):
                blocks += [_entry(f"{table}.{name}", entry) for entry in self.arrays.get(f"{table}.{name}", [])]
        blocks += [_entry("listener", entry) for entry in self.arrays.get("listener", [])]
        return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def _in_order(table: str, values: Mapping[str, tuple[Any, str]]) -> Mapping[str, tuple[Any, str]]:
    """The keys of a table of the core's own as they stand in the documentation."""
    order = [field.name for field in dataclasses.fields(CORE[table])] if table in CORE else list(values)
    return dict(sorted(values.items(), key=lambda item: order.index(item[0])))


def _body(values: Mapping[str, tuple[Any, str]]) -> list[str]:
    return [line for key, (value, comment) in values.items() for line in _line(key, value, comment)]


def _line(key: str, value: Any, comment: str) -> list[str]:
    line = f"{_key(key)} = {_toml(value)}"
    if not comment:
        return [line]
    return [f"{line}  # {comment}"] if len(line) + len(comment) < 117 else [*_comment([comment]), line]


def _entry(name: str, entry: Entry) -> list[str]:
    above = _comment([entry.comment]) if entry.comment else []
    return [*above, f"[[{name}]]", *(f"{_key(key)} = {_toml(value)}" for key, value in entry.values.items())]


def _comment(paragraphs: Sequence[str]) -> list[str]:
    """Lines of comment; an empty paragraph is an empty line, one that begins with a blank keeps it."""
    lines: list[str] = []
    for one in paragraphs:
        text = "".join(character if character.isprintable() else " " for character in one)
        bare = text.lstrip(" ")
        lead = text[: len(text) - len(bare)]
        found = textwrap.wrap(bare, WIDTH, initial_indent=lead, subsequent_indent=lead + ("  " if lead else ""),
                              break_long_words=False, break_on_hyphens=False) or [""]  # fmt: skip
        lines += [f"# {line}".rstrip() for line in found]
    return lines


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)


def _toml(value: Any) -> str:
    """A value; the numbers of a recipe are written as people do."""
    if isinstance(value, float) and not isinstance(value, bool):
        if value == int(value) and abs(value) < 1e6:
            return str(int(value))
        text = f"{value:.0e}" if float(f"{value:.0e}") == value and value < 1e-3 else repr(value)
        return re.sub(r"e-0?", "e-", text)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(str(key))} = {_toml(one)}" for key, one in value.items()) + " }"
    return toml_text(value)
