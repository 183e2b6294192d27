"""The memory strategies that plugins provide, by what their records and plans say: none is known here by its name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fitune.errors import FtError, Problem, RecipeError
from fitune.plugin.contract import blame
from fitune.plugin.options import parse
from fitune.plugin.recipe import Use
from fitune.plugin.records import MemoryStrategy
from fitune.plugin.registry import Registry
from fitune.plugin.strategy import Plan, Strategy


def strategies_of(registry: Registry) -> Iterator[MemoryStrategy[Any]]:
    """Every memory strategy that its name alone picks, and that is not deprecated."""
    for provided in registry.provided:
        record = provided.record
        if (
            isinstance(record, MemoryStrategy)
            and record.deprecated is None
            and registry.name_of(provided) == record.name
        ):
            yield record


def accumulating(registry: Registry) -> MemoryStrategy[Any] | None:
    """The strategy that sets the number of micro-batches to a step: the first, if plugins provide several."""
    return next((record for record in strategies_of(registry) if record.accumulates), None)


def growing(registry: Registry) -> MemoryStrategy[Any] | None:
    """The strategy that, with its default options, has the allocator's segments grow: the first of them."""
    return next((record for record in strategies_of(registry) if plan_alone(record, {}).expandable), None)


def use_of(record: MemoryStrategy[Any], setting: Mapping[str, object]) -> Use[MemoryStrategy[Any]]:
    """The strategy with these options. Raises `RecipeError` if they are wrong, or its own check finds fault."""
    options, problems = parse(record.options, setting)
    must_be_right(problems)
    must_be_right(record.check(options))
    return Use(record=record, options=options)


def plan_alone(record: MemoryStrategy[Any], setting: Mapping[str, object], *, processes: int = 1) -> Plan:
    """The plan of a run on GPUs with this strategy alone; an empty one if it cannot be had, as its trace will say."""
    plan = Plan(gpu=True, processes=processes)
    try:
        use = use_of(record, setting)
        with blame(f'memory strategy "{record.name}"'):
            return record.make(use.options).plan(plan)
    except FtError:
        return plan


def is_of_several(record: MemoryStrategy[Any]) -> bool:
    """Whether a strategy, with its default options, shards weights over processes if there are several."""
    return plan_alone(record, {}, processes=2).sharded


def records(record: MemoryStrategy[Any]) -> bool:
    """Whether a strategy, with its default options, may record micro-batches, which others keep from that
    (`Plan.unrecorded`).
    """
    try:
        with blame(f'memory strategy "{record.name}"'):
            made = record.make(use_of(record, {}).options)
    except FtError:
        return False
    return getattr(type(made), "micro_batch", Strategy.micro_batch) is not Strategy.micro_batch


def must_be_right(problems: Iterable[Problem]) -> None:
    """Raise `RecipeError` if there are any."""
    found = list(problems)
    if found:
        raise RecipeError([problem.sentence() for problem in found])
