"""Listeners of a recipe: those that it names, and those that every run has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fitune.plugin.recipe import Use
from fitune.plugin.records import Listener
from fitune.plugin.registry import Registry


def with_defaults(registry: Registry, named: Sequence[Use[Listener[Any]]]) -> tuple[Use[Listener[Any]], ...]:
    """The listeners that are there by default and not named, in the order of their plugins; then those that are named,
    in the recipe's. So what a run writes is written before another's listener can fail.

    Raises `PluginError` where two plugins give one of that name.
    """
    names = {use.record.name for use in named}
    records = [p.record for p in registry.provided if isinstance(p.record, Listener)]
    missing = dict.fromkeys(record.name for record in _by_itself(records) if record.name not in names)
    found = [registry.find(Listener, name) for name in missing]
    return (*(Use(record=record, options=record.options()) for record in found), *named)


def _by_itself(records: Sequence[Listener[Any]]) -> list[Listener[Any]]:
    return [record for record in records if record.default and record.deprecated is None]
