"""Options: a plugin's frozen dataclass, read strictly from a recipe's table and described to people.

A dataclass says all there is to say about an option: its name, its type, its range (`annotated_types`), its default,
and, in the string under the field, its meaning. Values are checked by pydantic in its strict JSON mode, since TOML's
types are JSON's: nothing is converted but arrays to tuples, strings to paths and integers to floats.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import annotated_types

from fitune.errors import Problem, nearest, sentences
from fitune.plugin.deprecation import Deprecation, Release, deprecated_fields, marks_of, this_release
from fitune.plugin.paths import seen_from

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

T = TypeVar("T")

MOST = 100
"""Problems of a table for which a remedy is sought, at most."""

SHOWN = 80
"""Most characters of a wrong value that an error repeats."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One field of an options dataclass, as `ft plugins show` prints it."""

    name: str
    type: str
    default: str | None
    """The default as TOML would write it; None where the option must be given."""
    doc: str
    deprecated: str = ""
    """Since which release it is deprecated, in which it is gone, and what to write; empty for one that is not."""
    formerly: tuple[str, ...] = ()
    """Names that it had, which are still understood."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NoOptions:
    """For a provider that takes no options."""


def describe(options: type, release: Release | None = None) -> list[Option]:
    """The options of a dataclass, in the order in which they are declared, but those that are gone; `release` is whose
    they are, by default fitune's.
    """
    docs, release = _field_docs(options), release or this_release()
    hints = typing.get_type_hints(options, include_extras=True)
    found = []
    for f in _fields(options):
        marks = marks_of(hints[f.name])
        own = [mark for mark in marks if isinstance(mark, Deprecation)]
        if any(mark.is_gone(release) for mark in own):
            continue
        former = [m for m in marks if not isinstance(m, Deprecation) and not m.in_favour_of(f.name).is_gone(release)]
        found.append(
            Option(
                name=f.name,
                type=type_name(hints[f.name]),
                default=default_text(f),
                doc=docs.get(f.name, ""),
                deprecated=" ".join(mark.told("", release).sentence().strip() for mark in own),
                formerly=tuple(mark.name for mark in former),
            )
        )
    return found


def parse(
    options: type[T], table: Mapping[str, object], *, known: Sequence[str] = ()
) -> tuple[T | None, list[Problem]]:
    """Read `table` as `options`: the value, or every problem found, each with its key relative to the table.

    `known` are keys of the same table that are read elsewhere; a misspelled key may have meant one of them.
    """
    from pydantic import ValidationError

    try:
        return adapter_of(options).validate_json(json.dumps(table, default=_not_json), strict=True), []
    except ValidationError as error:
        found: dict[str, Problem] = {}
        for number, detail in enumerate(error.errors(include_url=False)):
            if number < MOST:
                problem = _problem(options, table, detail, known)
            else:  # to look for names that are near takes time, and nobody reads so much
                problem = Problem(key=".".join(map(str, detail["loc"][:1])), what=detail["msg"].lower())
            found.setdefault(problem.key, problem)
        return None, list(found.values())


def to_table(value: object, base: Path | None = None) -> dict[str, object]:
    """An options value as a TOML table: every option explicit, except those that are None, or deprecated and as they
    are by default; paths as they are seen from a directory, where one is given.
    """
    table: dict[str, object] = {}
    aged = deprecated_fields(cast(Any, type(value)))
    for f in _fields(type(value)):
        item = _plain(getattr(value, f.name), base)
        if item is not None and not (f.name in aged and toml_text(item) == default_text(f)):
            table[f.name] = item
    return table


def type_name(hint: Any) -> str:
    """A type in words: `integer >= 1`, `array of strings`, `"a" or "b"`."""
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        base, *marks = typing.get_args(hint)
        return " ".join([type_name(base), " and ".join(r for m in marks for r in _range(m))]).rstrip()
    if origin is Literal:
        return " or ".join(json.dumps(a) for a in typing.get_args(hint))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_name(a) for a in typing.get_args(hint) if a is not types.NoneType)
    if origin in (tuple, list):
        inner = type_name(typing.get_args(hint)[0])
        return f"array of {inner}s" if inner.isalpha() else f"array of {inner}"
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
        return [f"(at least {mark.min_length})"]
    return []


def default_text(field: dataclasses.Field[Any]) -> str | None:
    """A field's default as TOML writes it; None where it has none."""
    if field.default is not dataclasses.MISSING:
        return "none" if field.default is None else toml_text(_plain(field.default))
    if field.default_factory is not dataclasses.MISSING:
        return toml_text(_plain(field.default_factory()))
    return None


def _plain(value: object, base: Path | None = None) -> object:
    if isinstance(value, Path):
        return seen_from(value, base)
    if isinstance(value, (tuple, list)):
        return [_plain(v, base) for v in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_table(value, base)
    return value


def _not_json(value: object) -> object:
    # TOML's dates and times: no option takes one, so it is handed on as a table, which no scalar accepts.
    return {"toml": str(value)}


def _problem(options: type, table: Mapping[str, object], detail: ErrorDetails, elsewhere: Sequence[str]) -> Problem:
    """pydantic's finding in this project's words."""
    keys, hint, known = _locate(options, detail["loc"])
    key, name = ".".join(map(str, keys)), keys[-1]
    if detail["type"] == "missing":
        return Problem(key=key, what=f'"{name}" is missing', fix=f"Add it; it takes: {type_name(hint)}")
    value: Any = table
    for part in keys:
        value = value[part]
    if detail["type"] == "unexpected_keyword_argument":
        what = "table" if is_table(value) else "key"
        names = [*known, *elsewhere] if len(keys) == 1 else known
        return Problem(
            key=key,
            what=f'unknown {what} "{name}"',
            fix=nearest(str(name), names) if names else "Remove it: no key is taken here",
        )
    takes = type_name(hint)
    if isinstance(value, float) and not math.isfinite(value):
        takes = f"finite {takes}"
    close = difflib.get_close_matches(value, _choices(hint), n=1) if isinstance(value, str) else []
    meant = f'Did you mean "{close[0]}"?' if close else ""
    return Problem(key=key, what=f'"{name}" is {_short(toml_text(value))}', fix=sentences(meant, f"It takes: {takes}"))


def is_table(value: object) -> bool:
    """Whether a TOML value is a table or an array of tables."""
    items = value if isinstance(value, list) else [value]
    return bool(items) and all(isinstance(item, Mapping) for item in items)


def flat(value: object, key: str = "") -> Iterator[tuple[str, Any]]:
    """(Dotted key, value) of all that is in nested tables; an array of tables by positions, e.g. `data.stage.0.use`."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from flat(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and is_table(value):
        for number, inner in enumerate(value):
            yield from flat(inner, f"{key}.{number}")
    else:
        yield key, value


def toml_text(value: object) -> str:
    """A value as TOML writes it, in one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {toml_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(toml_text, value)) + "]"
    return str(value)


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 4]} ..."


def _choices(hint: Any) -> list[str]:
    """The words that a type takes, its `Literal`s."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return [a for a in arguments if isinstance(a, str)]
    return [word for a in arguments for word in _choices(a)]


def _locate(options: type, loc: tuple[int | str, ...]) -> tuple[list[int | str], Any, list[str]]:
    """Follow pydantic's `loc` through nested dataclasses: keys, the type that stands there, the names known there."""
    hint: Any = options
    known: list[str] = []
    keys: list[int | str] = []
    for part in loc:
        inner = _dataclass_in(hint)
        if isinstance(part, str) and inner is not None:
            hints = typing.get_type_hints(inner, include_extras=True)
            known = list(hints)
            hint = hints.get(part)
            keys.append(part)
        elif isinstance(part, int) and inner is not None:
            keys.append(part)  # an element of an array of tables
        else:
            break  # inside a union or an array: the field as a whole is named
    return keys, hint, known


def _dataclass_in(hint: Any) -> type | None:
    """The dataclass that a hint holds: itself, or e.g. the element of `tuple[X, ...]`."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return hint
    return next(filter(None, map(_dataclass_in, typing.get_args(hint))), None)


def _field_docs(options: type) -> dict[str, str]:
    """The string that stands under each field, in one line; pydantic reads those of a class, and not of its parents."""
    from pydantic.errors import PydanticUserError

    docs: dict[str, str] = {}
    for cls in filter(dataclasses.is_dataclass, reversed(options.__mro__)):
        with contextlib.suppress(PydanticUserError):  # a type that pydantic does not know: what it says is left out
            fields = adapter_of(cls, docstrings=True).json_schema().get("properties", {})
            docs |= {name: " ".join(f["description"].split()) for name, f in fields.items() if "description" in f}
    return docs


def adapter_of(options: type[T], *, docstrings: bool = False) -> TypeAdapter[T]:
    """pydantic's reader of a dataclass; with `docstrings`, which take time to find, it knows those of the fields."""
    from pydantic import ConfigDict, TypeAdapter

    strict = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    config: ConfigDict = vars(options).get("__pydantic_config__", strict).copy()
    config["use_attribute_docstrings"] = docstrings
    options.__pydantic_config__ = config  # type: ignore[attr-defined]
    return TypeAdapter(options)
