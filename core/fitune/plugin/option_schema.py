"""Options as JSON Schema, for editors: what `fitune.plugin.options` reads, said in the words of other tools."""

from __future__ import annotations

from typing import Any, cast

from fitune.plugin.options import adapter_of


def schema_of_options(options: type) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a table that is read as this dataclass: types, ranges, defaults and meanings."""
    return cast("dict[str, Any]", _as_toml(adapter_of(options, docstrings=True).json_schema()))


def _as_toml(schema: Any) -> Any:
    """Without what TOML has no word for, null, and without titles, which only repeat names."""
    if isinstance(schema, list):
        return [_as_toml(item) for item in schema]
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
    return {k: _as_toml(v) for k, v in kept.items()}
