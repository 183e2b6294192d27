"""Keys that other tools have, and keys that stand in the wrong table: what a recipe calls them, and where they go."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

from fitune.errors import Problem
from fitune.plugin.recipe import Checkpoint, Data, Evaluation, General, Memory, Train
from fitune.plugin.registry import Registry
from fitune.recipe.foreign import known
from fitune.recipe.foreign.key import Known

CORE: dict[str, type] = {
    "": General,
    "memory": Memory,
    "data": Data,
    "train": Train,
    "eval": Evaluation,
    "checkpoint": Checkpoint,
}
"""The core's own tables."""

SERVED = {
    "model loader": "[model]",
    "adapter": "[adapter]",
    "objective": "[objective]",
    "memory strategy": "[[memory.strategy]]",
    "data stage": "[[data.stage]]",
    "listener": "[[listener]]",
}
"""Where the providers of a kind are named."""


OWN = {field.name for options in CORE.values() for field in dataclasses.fields(cast(Any, options))}
"""The core's own keys, which other tools may have too."""

ARRAYS = ("strategy", "source", "stage")
"""Names of arrays of tables, which stand within [memory], [data] and [eval]."""

MEANT: dict[str, Known] = {name: key for name, key in known.ALL.items() if name not in OWN and name not in ARRAYS}
"""Keys that other tools have, and no table of the core's own."""


def told_better(problem: Problem, at: str, registry: Registry) -> Problem:
    """The problem of a key that nobody knows, with what it may have been meant to be: a key of another table, or what
    another tool calls so. `at` is the table, e.g. "[train]". Others stay as they are.
    """
    name = problem.key.rpartition(".")[2]
    if problem.what not in (f'unknown key "{name}"', f'unknown table "{name}"'):
        return problem
    if (meant := MEANT.get(name.lower())) is not None:
        here = "not here" if meant.fate == "could not" else "here"
        return replace(problem, fix=f"What other tools call so is {here}: {meant.says}")
    places = list(_core(name))
    if not places and not problem.fix.startswith("Did you"):
        places = list(_served(name, registry))
    others = [place for place in places if place != at][:3]
    return replace(problem, fix=f'"{name}" is a key of {" and of ".join(others)}') if others else problem


def _core(name: str) -> Iterator[str]:
    """The core's own tables that have a key of this name."""
    for table, options in CORE.items():
        if name in _keys(options):
            yield f"[{table}]" if table else "the part above the first table"


def _served(name: str, registry: Registry) -> Iterator[str]:
    """The tables of plugins that have a key of this name."""
    for provided in registry.provided:
        if provided.kind in SERVED and name in _keys(provided.record.options):
            kind = "[[data.source]]" if getattr(provided.record, "takes", "") == "nothing" else SERVED[provided.kind]
            yield f'{kind} use = "{provided.record.name}"'


def _keys(options: type) -> set[str]:
    return {field.name for field in dataclasses.fields(cast(Any, options))}
