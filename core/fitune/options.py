"""Options: a plugin's frozen dataclass, read strictly from a recipe's table and described to people.

A dataclass says all there is to say about an option: its name, its type, its range (`annotated_types`), its default,
and, in the string under the field, its meaning. Values are checked by pydantic in its strict JSON mode, since TOML's
types are JSON's: nothing is converted but arrays to tuples, strings to paths and integers to floats.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
import math
import textwrap
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import annotated_types

from fitune.errors import Problem, nearest

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One field of an options dataclass, as `ft plugins show` prints it."""

    name: str
    type: str
    default: str | None
    """The default as TOML would write it; None where the option must be given."""
    doc: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NoOptions:
    """For a provider that takes no options."""


def describe(options: type) -> list[Option]:
    """The options of a dataclass, in the order in which they are declared."""
    docs = _field_docs(options)
    hints = typing.get_type_hints(options, include_extras=True)
    return [
        Option(name=f.name, type=type_name(hints[f.name]), default=_default(f), doc=docs.get(f.name, ""))
        for f in _fields(options)
    ]


def parse(options: type[T], table: Mapping[str, object]) -> tuple[T | None, list[Problem]]:
    """Read `table` as `options`: the value, or every problem found, each with its key relative to the table."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    if "__pydantic_config__" not in vars(options):
        options.__pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[attr-defined]
    try:
        return TypeAdapter(options).validate_json(json.dumps(table, default=_not_json), strict=True), []
    except ValidationError as error:
        found: dict[str, Problem] = {}
        for detail in error.errors(include_url=False):
            problem = _problem(options, table, detail)
            found.setdefault(problem.key, problem)
        return None, list(found.values())


def to_table(value: object) -> dict[str, object]:
    """An options value as a TOML table: every option explicit, except those that are None."""
    table: dict[str, object] = {}
    for f in _fields(type(value)):
        item = _plain(getattr(value, f.name))
        if item is not None:
            table[f.name] = item
    return table


def type_name(hint: Any) -> str:
    """A type in words: `integer >= 1`, `array of strings`, `"a" or "b"`."""
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        base, *marks = typing.get_args(hint)
        return " ".join([type_name(base), *(r for m in marks for r in _range(m))])
    if origin is Literal:
        return " or ".join(json.dumps(a) for a in typing.get_args(hint))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_name(a) for a in typing.get_args(hint) if a is not types.NoneType)
    if origin in (tuple, list):
        return f"array of {type_name(typing.get_args(hint)[0])}s"
    names = {int: "integer", float: "number", bool: "true or false", str: "string", Path: "path"}
    return names.get(hint, "table")


def _fields(options: type) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(cast(Any, options))


def _range(mark: object) -> list[str]:
    """`annotated_types` marks as comparisons."""
    signs = {
        annotated_types.Ge: ">=",
        annotated_types.Gt: ">",
        annotated_types.Le: "<=",
        annotated_types.Lt: "<",
    }
    for kind, sign in signs.items():
        if isinstance(mark, kind):
            return [f"{sign} {getattr(mark, kind.__name__.lower())}"]
    if isinstance(mark, annotated_types.GroupedMetadata):
        return [word for m in mark for word in _range(m)]
    if isinstance(mark, annotated_types.MinLen):
        return [f"of at least {mark.min_length}"]
    return []


def _default(field: dataclasses.Field[Any]) -> str | None:
    if field.default is not dataclasses.MISSING:
        return "none" if field.default is None else json.dumps(_plain(field.default), ensure_ascii=False)
    if field.default_factory is not dataclasses.MISSING:
        return json.dumps(_plain(field.default_factory()), ensure_ascii=False)
    return None


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_table(value)
    return value


def _not_json(value: object) -> object:
    # TOML's dates and times: no option takes one, so it is handed on as a table, which no scalar accepts.
    return {"toml": str(value)}


def _problem(options: type, table: Mapping[str, object], detail: ErrorDetails) -> Problem:
    """pydantic's finding in this project's words."""
    key, hint, known = _locate(options, detail["loc"])
    name = key.rpartition(".")[2]
    kind = detail["type"]
    if kind == "missing":
        return Problem(key=key, what=f'"{name}" is missing', fix=f"Give it: {type_name(hint)}")
    if kind == "unexpected_keyword_argument":
        return Problem(key=key, what=f'unknown key "{name}"', fix=nearest(name, known))
    value: Any = table
    for part in detail["loc"]:
        if isinstance(value, Mapping) and part in value:
            value = value[cast(str, part)]
        elif isinstance(value, list) and isinstance(part, int):
            value = value[part]
    shown = json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, float) and not math.isfinite(value):
        shown = str(value)
    return Problem(key=key, what=f'"{name}" is {shown}', fix=f"It takes: {type_name(hint)}")


def _locate(options: type, loc: tuple[int | str, ...]) -> tuple[str, Any, list[str]]:
    """Follow pydantic's `loc` through nested dataclasses: dotted key, the type that stands there, the keys known."""
    hint: Any = options
    known: list[str] = []
    keys: list[str] = []
    for part in loc:
        inner = _dataclass_in(hint)
        if isinstance(part, str) and inner is not None:
            hints = typing.get_type_hints(inner, include_extras=True)
            known = list(hints)
            hint = hints.get(part)
            keys.append(part)
        elif isinstance(part, int) and inner is not None:
            keys.append(str(part))  # an element of an array of tables
        else:
            break  # inside a union or an array: the field as a whole is named
    return ".".join(keys), hint, known


def _dataclass_in(hint: Any) -> type | None:
    """The dataclass that a hint holds: itself, or the element of `tuple[X, ...]`."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return hint
    found = [a for a in typing.get_args(hint) if isinstance(a, type) and dataclasses.is_dataclass(a)]
    return found[0] if found else None


def _field_docs(options: type) -> dict[str, str]:
    """The string that stands under each field, which Python itself does not keep."""
    docs: dict[str, str] = {}
    for cls in reversed(options.__mro__):
        if not dataclasses.is_dataclass(cls):
            continue
        try:
            body = cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]).body
        except (OSError, TypeError, SyntaxError):  # defined where no source is kept, e.g. at a prompt
            continue
        for field, text in itertools.pairwise(body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            ):
                docs[field.target.id] = " ".join(text.value.value.split())
    return docs
