"""A JSON Schema of a recipe, for editors and validators: the core's tables, and those of every installed plugin.

Made from the same dataclasses that recipes are read with, by pydantic, in the dialect of 2020-12. TOML knows no null,
so a key that may be left out is simply not required. What no type can say (a file that is missing, stages that do not
fit together) is left to `ft check`.
"""

from __future__ import annotations

from typing import Any

from fitune.plugin.option_schema import schema_of_options
from fitune.plugin.provided import Provided
from fitune.plugin.recipe import Checkpoint, Compared, Data, Evaluation, General, Memory, NewTokens, Train, Weight
from fitune.plugin.records import Adapter, DataStage, Listener, MemoryStrategy, ModelLoader, Objective, Provider
from fitune.plugin.registry import KINDS, Registry
from fitune.recipe.objective import CONTINUED, FROM

DIALECT = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]


def schema_of(registry: Registry) -> Schema:
    """The schema of a recipe with these plugins. Raises nothing: a plugin that is broken offers nothing."""
    definitions: Schema = {}

    def plain(options: type) -> Schema:
        return _lifted(schema_of_options(options), definitions)

    def table(kind: type[Provider], *, source: bool | None = None, **more: Schema) -> Schema:
        found = [o for o in _of(registry, kind) if source in (None, getattr(o.record, "takes", None) == "nothing")]
        return _served([(_names(registry, o), o.record.summary, plain(o.record.options)) for o in found], more)

    sources = _array(table(DataStage, source=True, **plain(Weight)["properties"]))
    stages = _array(table(DataStage, source=False))
    begun: Schema = {FROM: {"type": "string", "description": CONTINUED}}
    top = plain(General)
    top["properties"] |= {
        "model": table(ModelLoader, **plain(NewTokens)["properties"]),
        "adapter": table(Adapter, **begun),
        "objective": table(Objective, **plain(Compared)["properties"]),
        "memory": _with(plain(Memory), strategy=_array(table(MemoryStrategy))),
        "data": _with(plain(Data), source=sources, stage=stages),
        "train": plain(Train),
        "eval": _with(plain(Evaluation), source=sources),
        "checkpoint": plain(Checkpoint),
        "listener": _array(table(Listener)),
    }
    top["required"] = [*top.get("required", ()), "model", "adapter", "data"]
    top["description"] = "A recipe of fitune: all that a fine-tuning run depends on."
    return {"$schema": DIALECT, "title": "fitune recipe", **top, "$defs": definitions}


def _of(registry: Registry, kind: type[Provider]) -> list[Provided]:
    """What plugins provide of a kind, by name."""
    found = (one for one in registry.provided if one.kind == KINDS[kind])
    return sorted(found, key=lambda one: (one.record.name, registry.plugins[one.plugin].owner))


def _names(registry: Registry, one: Provided) -> list[str]:
    """What a recipe may write to pick it: its name, and with its owner, where it is not fitune's own alone."""
    owned, plugin = f"{registry.plugins[one.plugin].owner}:{one.record.name}", registry.plugins[one.plugin]
    alone = sum((one.kind, one.record.name) == (o.kind, o.record.name) for o in registry.provided) == 1
    return list(dict.fromkeys([registry.name_of(one), *(() if plugin.origin == "built-in" and alone else (owned,))]))


def _served(providers: list[tuple[list[str], str, Schema]], more: Schema) -> Schema:
    """A table that a plugin serves: `use` names it, and says which other keys there are."""
    each = []
    for names, summary, options in providers:
        named: Schema = {"const": names[0]} if len(names) == 1 else {"enum": names}
        each.append(
            {
                **options,
                "title": names[0],
                "description": summary,
                "properties": {"use": {**named, "description": summary}, **more, **options.get("properties", {})},
                "required": ["use", *options.get("required", ())],
            }
        )
    return {"oneOf": each}


def _array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _with(table: Schema, **more: Schema) -> Schema:
    return {**table, "properties": {**table.get("properties", {}), **more}}


def _lifted(schema: Schema, definitions: Schema) -> Schema:
    """The schema without definitions of its own: they are everybody's now. Two classes of one name and other fields get
    a name each.
    """
    own = schema.pop("$defs", {})
    names: dict[str, str] = {}
    for name, definition in own.items():
        place, number = name, 1
        while place in definitions and definitions[place] != definition:
            number += 1
            place = f"{name}{number}"
        definitions[place] = definition
        names[f"#/$defs/{name}"] = f"#/$defs/{place}"
    for name in own:
        place = names[f"#/$defs/{name}"].removeprefix("#/$defs/")
        definitions[place] = _renamed(definitions[place], names)
    found: Schema = _renamed(schema, names)
    return found


def _renamed(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {k: names.get(v, v) if k == "$ref" else _renamed(v, names) for k, v in value.items()}
    return [_renamed(item, names) for item in value] if isinstance(value, list) else value
