"""The order in which memory strategies work: the recipe's, but where a record says that another is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fitune.errors import PluginError
from fitune.plugin.recipe import Use
from fitune.plugin.records import MemoryStrategy

Uses = tuple[Use[MemoryStrategy[Any]], ...]


def in_order(uses: Sequence[Use[MemoryStrategy[Any]]]) -> Uses:
    """The same strategies, each behind those that are to work before it, and otherwise as they stand.

    Raises `PluginError` where records ask for orders that exclude each other.
    """
    left, made = list(uses), []
    while left:
        free = next((use for use in left if not any(_is_before(other.record, use.record) for other in left)), None)
        if free is None:
            names = " and ".join(f'"{use.record.name}"' for use in left)
            raise PluginError(
                f"the memory strategies {names} are each to work before another of them. Keep one of them"
            )
        left.remove(free)
        made.append(free)
    return tuple(made)


def told_order(uses: Sequence[Use[MemoryStrategy[Any]]], ordered: Uses) -> tuple[str, ...]:
    """A line where the order is not the recipe's."""
    if tuple(uses) == ordered:
        return ()
    return (f"memory strategies work in this order, not the recipe's: {', '.join(u.record.name for u in ordered)}",)


def _is_before(one: MemoryStrategy[Any], other: MemoryStrategy[Any]) -> bool:
    return one is not other and (other.is_called(one.before) or one.is_called(other.requires))
