"""Whether a recipe can give what an options class asks for: its fields' names and types, looked at as it is registered.

It is done by hand, since pydantic, which reads the values, is imported only where a recipe is.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from fitune.plugin.deprecation import Deprecation, Formerly, marks_of

PLAIN = (bool, int, float, str, Path, types.NoneType)
"""Types of single values."""

MANY = (tuple, list, Sequence, dict, Mapping)
"""Types that hold others, which must be said."""

CORE = {"use": "names the provider", "from": "says where an adapter begins"}
"""Keys of a provider's table that are the core's, and what each does."""


def wrong_fields(options: type, hints: Mapping[str, Any], also: Collection[str] = ()) -> Iterator[str]:
    """What is wrong with each field that no recipe could set; `also` are more keys that are the core's there."""
    for field in dataclasses.fields(options):
        if field.name in CORE or field.name in also:
            yield f'"{field.name}" is a key of the core\'s, which {CORE.get(field.name, "stands beside the options")}'
        elif (why := _wrong(hints[field.name], frozenset())) is not None:
            yield f'"{field.name}" {why}'
        for mark in marks_of(hints[field.name]):
            if isinstance(mark, Formerly) and mark.name in {*hints, *CORE, *also}:
                yield f'"{field.name}" was formerly "{mark.name}", which is another key'
            elif isinstance(mark, Deprecation) and is_required(field):
                yield f'"{field.name}" is deprecated, so that it needs a default'


def _wrong(hint: Any, seen: frozenset[Any]) -> str | None:
    """Why no value of a recipe is of a type; None where some are."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _wrong(inner[0], seen)
    if origin is Literal or hint in PLAIN or hint in seen:
        return None
    if origin in (typing.Union, types.UnionType):
        return next(filter(None, (_wrong(one, seen) for one in inner)), None)
    if hint in MANY:
        return f"is a {hint.__name__} of nobody knows what: say of which, e.g. {_example(hint)}"
    if origin in MANY:
        if origin in (dict, Mapping) and inner[0] is not str:
            return "has keys that are no strings, as keys of TOML are"
        return next(filter(None, (_wrong(one, seen) for one in inner if one is not Ellipsis)), None)
    if dataclasses.is_dataclass(hint):
        found = typing.get_type_hints(hint, include_extras=True)
        return next(filter(None, (_wrong(one, seen | {hint}) for one in found.values())), None)
    name = getattr(hint, "__name__", None) or str(hint)
    return f"is of type {name}: a recipe gives true or false, numbers, strings, paths, arrays and tables of these"


def is_required(field: dataclasses.Field[Any]) -> bool:
    """Whether a recipe must give an option."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _example(hint: Any) -> str:
    if hint in (dict, Mapping):
        return f"{hint.__name__}[str, int]"
    return "tuple[str, ...]" if hint is tuple else f"{hint.__name__}[str]"
