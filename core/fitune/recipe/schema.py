"""A JSON Schema of a recipe, for editors and validators: the core's tables, and those of every installed plugin.

Made from the same dataclasses that recipes are read with, by pydantic, in the dialect of 2020-12. TOML knows no null,
so a key that may be left out is simply not required. What no type can say (a file that is missing, stages that do not
fit together) is left to `ft check`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from fitune.plugin.deprecation import Release
from fitune.plugin.option_schema import schema_of_options
from fitune.plugin.provided import Provided
from fitune.plugin.recipe import Checkpoint, Compared, Data, Evaluation, General, Memory, NewTokens, Train, Weight
from fitune.plugin.records import Adapter, DataStage, Listener, MemoryStrategy, ModelLoader, Objective, Provider
from fitune.plugin.registry import KINDS, Registry
from fitune.recipe.objective import CONTINUED, FROM
from fitune.recipe.renamed import GONE, LISTENERS, are_gone, mark_of, problem_of

DIALECT = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]


def schema_of(registry: Registry) -> Schema:
    """The schema of a recipe with these plugins. Raises nothing: a plugin that is broken offers nothing."""
    definitions: Schema = {}

    def plain(options: type, release: Release | None = None) -> Schema:
        return _lifted(schema_of_options(options, release), definitions)

    def table(kind: type[Provider], *, source: bool | None = None, **more: Schema) -> Schema:
        found = [o for o in _of(registry, kind) if source in (None, getattr(o.record, "takes", None) == "nothing")]
        return _served([one for o in found for one in _tables(registry, o, plain)], more)

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
    _add_renamed(top["properties"], registry)
    top["required"] = [*top.get("required", ()), "model", "adapter", "data"]
    top["description"] = "A recipe of fitune: all that a fine-tuning run depends on."
    return {"$schema": DIALECT, "title": "fitune recipe", **top, "$defs": definitions}


def _add_renamed(tables: Schema, registry: Registry) -> None:
    """Keys of 0.1 that are options of listeners now, as long as they are understood."""
    records = {one.record.name: one.record for one in registry.provided if one.kind == KINDS[Listener]}
    for (table, key), (listener, option) in LISTENERS.items():
        if listener in records and not are_gone():
            said = schema_of_options(records[listener].options)["properties"][option]
            mark = mark_of({"use": listener, option: said.get("default", "...")}, overridden=False)
            at = tables.setdefault(table, {"type": "object", "additionalProperties": False, "properties": {}})
            at["properties"][key] = {
                **{name: value for name, value in said.items() if name not in ("default", "description")},
                "description": problem_of((table, key), mark).sentence(),
                "deprecated": True,
            }
    if GONE in tables:
        tables[GONE]["deprecated"] = True


def _of(registry: Registry, kind: type[Provider]) -> list[Provided]:
    """What plugins provide of a kind, by name."""
    found = (one for one in registry.provided if one.kind == KINDS[kind])
    return sorted(found, key=lambda one: (one.record.name, registry.plugins[one.plugin].owner))


def _names(registry: Registry, one: Provided) -> list[str]:
    """What a recipe may write to pick it: its name, and with its owner, where it is not fitune's own alone."""
    owned, plugin = f"{registry.plugins[one.plugin].owner}:{one.record.name}", registry.plugins[one.plugin]
    alone = sum((one.kind, one.record.name) == (o.kind, o.record.name) for o in registry.provided) == 1
    return list(dict.fromkeys([registry.name_of(one), *(() if plugin.origin == "built-in" and alone else (owned,))]))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """The table of a provider, as some names pick it."""

    names: list[str]
    summary: str
    options: Schema
    deprecated: bool = False


def _tables(registry: Registry, one: Provided, plain: Callable[[type, Release], Schema]) -> Iterator[_Table]:
    """A provider's table by its names, and by those that it had and that are still understood."""
    record, plugin = one.record, registry.plugins[one.plugin]
    made = _Table(names=_names(registry, one), summary=record.summary, options=plain(record.options, plugin.release))
    yield replace(made, deprecated=record.deprecated is not None)
    now = {o.record.name for o in registry.provided if o.kind == one.kind}
    for mark in record.formerly:
        told = mark.in_favour_of(f'Write "{registry.name_of(one)}"')
        if mark.name not in now and not told.is_gone(plugin.release):
            about = told.told(f'the {one.kind} "{mark.name}"', plugin.release).sentence()
            yield replace(made, names=[mark.name], summary=about, deprecated=True)


def _served(tables: list[_Table], more: Schema) -> Schema:
    """A table that a plugin serves: `use` names it, and says which other keys there are."""
    each = []
    for one in tables:
        named: Schema = {"const": one.names[0]} if len(one.names) == 1 else {"enum": one.names}
        named |= {"deprecated": True} if one.deprecated else {}
        each.append(
            {
                **one.options,
                "title": one.names[0],
                "description": one.summary,
                "properties": {
                    "use": {**named, "description": one.summary},
                    **more,
                    **one.options.get("properties", {}),
                },
                "required": ["use", *one.options.get("required", ())],
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
