"""What a run minimises, and where its adapter begins: `[objective]`, and the key `from` of `[adapter]`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fitune.errors import Problem
from fitune.plugin.contract import blame
from fitune.plugin.deprecation import keys_of
from fitune.plugin.options import toml_text
from fitune.plugin.paths import located
from fitune.plugin.recipe import Compared, Recipe, Use
from fitune.plugin.records import Adapter, Objective
from fitune.recipe.source import Key
from fitune.recipe.tables import Tables

DEFAULT = "sft"
"""The objective of a recipe that names none."""

FROM, REFERENCE = "from", "reference"
"""Keys that stand beside a plugin's own."""

CONTINUED = "A run's directory, or one of its checkpoints': its adapter is gone on with. By default, a new one begins."
"""What the first of them means."""


def read_adapter(tables: Tables) -> Use[Adapter[Any]] | None:
    """The table `[adapter]`."""
    use = tables.use(Adapter, ("adapter",), known=[FROM])
    table = tables.source.values.get("adapter")
    if use is None or not isinstance(table, dict) or FROM not in table:
        return use
    given, at = table[FROM], ("adapter", FROM)
    if not isinstance(given, str):
        tables.add(at, Problem(what=f'"{FROM}" is {toml_text(given)}, not a path', fix="Give a run's directory"))
        return None
    if use.record.fill is None:
        what = f'the adapter "{use.record.name}" cannot go on from another run (Adapter.fill)'
        tables.add(at, Problem(what=what, fix="Remove the key"))
        return None
    return dataclasses.replace(use, start=_place(tables, given))


def _place(tables: Tables, given: str) -> Path:
    overridden = tables.source.overridden(("adapter", FROM))
    base = Path.cwd() if overridden else tables.source.path.parent.resolve()
    return located(base, Path(given), None if overridden else tables.source.was)


def read_objective(tables: Tables, adapter: Use[Adapter[Any]] | None) -> Use[Objective[Any]] | None:
    """The table `[objective]`, or what stands for one that is left out; where its reference comes from is said."""
    if "objective" not in tables.source.values:
        record = tables.registry.find(Objective, DEFAULT)
        return Use(record=record, options=record.options())
    keys = keys_of(Compared)
    use = tables.use(Objective, ("objective",), known=keys)
    if use is None or adapter is None:
        return None
    table = tables.source.values["objective"]
    given = {key: table[key] for key in keys if key in table}
    with blame(f'the needs_reference of the objective "{use.record.name}"'):
        needed = use.record.needs_reference(use.options)
    if not needed:
        if given:
            what = f'"{REFERENCE}" has no effect: "{use.record.name}" compares with nothing, as it is set here'
            tables.add(("objective", REFERENCE), Problem(what=what, fix="Remove it"))
        return use
    compared = tables.parse(Compared, given, ("objective",))
    if compared is None:
        return None
    can = adapter.record.off is not None and adapter.start is None
    if compared.reference == "adapter-off" and not can:
        tables.add(("objective", REFERENCE), _cannot(adapter))
        return None
    return dataclasses.replace(use, reference=compared.reference or ("adapter-off" if can else "prepared"))


def objective_problems(recipe: Recipe) -> Iterator[tuple[Key, Problem]]:
    """What a recipe asks of a model that its objective's cannot do, each with its key."""
    record = recipe.objective.record
    if recipe.evaluation.exact_match and not record.writes:
        what = f'"exact_match" is true, but what the objective "{record.name}" trains writes no text'
        yield (
            ("eval", "exact_match"),
            Problem(what=what, fix="Remove the key: loss and accuracy are measured without it"),
        )


def _cannot(adapter: Use[Adapter[Any]]) -> Problem:
    what = f'"{REFERENCE}" is "adapter-off", but '
    if adapter.start is not None:
        what += "[adapter] from = ... begins with an adapter: without it, the model is not what it was before training"
    else:
        what += f'the adapter "{adapter.record.name}" cannot be switched off: it changes the model\'s own weights'
    return Problem(what=what, fix=f'Set {REFERENCE} = "prepared"')
