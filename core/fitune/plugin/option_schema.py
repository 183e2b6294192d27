"""Options as JSON Schema, for editors: what `fitune.plugin.options` reads, said in the words of other tools."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from fitune.plugin.deprecation import SCHEMA, Deprecation, Mark, Release, this_release
from fitune.plugin.options import adapter_of


def schema_of_options(options: type, release: Release | None = None) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a table that is read as this dataclass: types, ranges, defaults and meanings.
    `release` is whose options these are, by default fitune's: what is deprecated is marked so, and what is gone is not
    there.
    """
    schema = adapter_of(options, docstrings=True).json_schema()
    return cast("dict[str, Any]", _as_toml(schema, release or this_release()))


def _as_toml(schema: Any, release: Release) -> Any:
    """Without what TOML has no word for, null, and without titles, which only repeat names."""
    if isinstance(schema, list):
        return [_as_toml(item, release) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {
        k: v for k, v in schema.items() if not (k == "title" and isinstance(v, str)) and (k, v) != ("default", None)
    }
    some = [one for one in kept.get("anyOf", ()) if one != {"type": "null"}]
    if "anyOf" in kept and len(some) == 1:
        kept = {**{k: v for k, v in kept.items() if k != "anyOf"}, **some[0]}
    elif "anyOf" in kept:
        kept["anyOf"] = some
    if isinstance(kept.get("description"), str):
        kept["description"] = " ".join(kept["description"].split())
    return _aged({k: _as_toml(v, release) for k, v in kept.items() if k != SCHEMA}, schema, release)


def _marks(said: Any) -> list[Mark]:
    """The marks of a key, by its schema before it is finished: its own, or of one of the types that it takes."""
    if not isinstance(said, dict):
        return []
    return [*said.get(SCHEMA, ()), *(mark for one in said.get("anyOf", ()) for mark in one.get(SCHEMA, ()))]


def _aged(made: dict[str, Any], schema: Mapping[str, Any], release: Release) -> dict[str, Any]:
    """A table's schema with names that keys had, and without keys that are gone."""
    properties = schema.get("properties", {})
    for name, said in properties.items() if isinstance(properties, dict) else ():
        for mark in _marks(said):
            if isinstance(mark, Deprecation):
                old, one = name, mark
            else:
                old, one = mark.name, mark.in_favour_of(f'Write "{name}"')
            if not one.is_gone(release):
                about = one.told(f'"{old}"', release).sentence()
                made["properties"][old] = {**made["properties"][name], "deprecated": True, "description": about}
                if name in made.get("required", ()):  # it may have either name
                    made["required"] = [key for key in made["required"] if key != name]
            elif old == name:
                del made["properties"][name]
    return made
