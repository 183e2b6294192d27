"""The chain of data stages: each takes what the one before gives, from a source's rows to batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from fitune.errors import Problem
from fitune.plugin.dataflow import Flow, Takes
from fitune.plugin.recipe import Use
from fitune.plugin.records import DataStage
from fitune.plugin.registry import Registry
from fitune.recipe.source import Key
from fitune.recipe.tables import split

Uses = Sequence[Use[DataStage[Any]]]

Found = list[tuple[Key, Problem]]


def close_chain(
    registry: Registry, sources: Uses, stages: Uses, eval_sources: Uses, takes: Takes = "documents"
) -> tuple[Found, tuple[Use[DataStage[Any]], ...] | None]:
    """The stages with those that close them up to batches, for an objective that takes this.

    Or the problems, each with the key of its table.
    """
    found = [*_sources(registry, sources, eval_sources), *_no_sources(stages)]
    if takes != "documents":
        found += _not_for_preferences(stages)
        stages = [_for_preferences(use) for use in stages]
    if found:
        return found, None
    chain: list[Use[DataStage[Any]]] = []
    gives = sources[0].record.gives
    for number, use in enumerate(stages):
        between = None if use.record.takes == gives else _between(registry, gives, use.record.takes)
        if between is not None:
            chain.append(_plain_use(registry, between))
            gives = between.gives
        if use.record.takes != gives:
            what = f'"{use.record.name}" takes {use.record.takes}, but what comes to it is {gives}'
            fix = _of_objective(gives, use.record.takes, takes)
            fix = fix or f"Stages that take {gives}: {_names_that_take(registry, gives)}"
            return [(("data", "stage", number), Problem(what=what, fix=fix))], None
        chain.append(use)
        gives = use.record.gives
    while (record := _behind(registry, gives, {use.record.name for use in chain})) is not None:
        chain.append(_plain_use(registry, record))
        gives = record.gives
    if gives != "batches":
        what = f"the data stages end with {gives}, not with batches"
        fix = f"Add a [[data.stage]] that takes {gives}: {_names_that_take(registry, gives)}"
        return [(("data",), Problem(what=what, fix=fix))], None
    return [], tuple(chain)


def _for_preferences(use: Use[DataStage[Any]]) -> Use[DataStage[Any]]:
    """The stage that works in this one's place where answers are compared."""
    return use if use.record.for_preferences is None else replace(use, record=use.record.for_preferences)


def _not_for_preferences(stages: Uses) -> Iterable[tuple[Key, Problem]]:
    """What options of these stages cannot be where answers are compared."""
    for number, use in enumerate(stages):
        other = use.record.for_preferences
        for problem in () if other is None else other.check(use.options):
            yield ("data", "stage", number, *split(problem.key)), problem


def _of_objective(gives: Flow, wanted: Flow, takes: Takes) -> str:
    """What to do about a chain that is one for another objective."""
    if (gives, wanted) == ("preferences", "conversations"):
        return 'Name an objective that compares answers, e.g. [objective] use = "dpo", or remove the stage before it'
    if (gives, wanted) == ("conversations", "preferences"):
        kind = "pairs of answers" if takes == "pairs" else "judged answers"
        return f'The objective takes {kind}: use = "preferences" in place of the format before it'
    return ""


def _between(registry: Registry, gives: Flow, takes: Flow) -> DataStage[Any] | None:
    """The stage that closes a gap in a chain, where there is one."""
    return next((s for s in _closing(registry, "gap") if (s.takes, s.gives) == (gives, takes)), None)


def _behind(registry: Registry, gives: Flow, named: set[str]) -> DataStage[Any] | None:
    """The next stage to be put behind a chain: first those that give what they take, then one that leads on."""
    fitting = [s for s in _closing(registry, "end") if s.takes == gives and s.name not in named]
    return min(fitting, key=lambda stage: stage.takes != stage.gives, default=None)


def _closing(registry: Registry, where: str) -> list[DataStage[Any]]:
    """The stages that close chains, the first of those that take and give the same."""
    known = [p.record for p in registry.provided if isinstance(p.record, DataStage)]
    stages = [stage for stage in known if stage.closes == where and stage.deprecated is None]
    return list({(stage.takes, stage.gives): stage for stage in reversed(stages)}.values())


def _plain_use(registry: Registry, record: DataStage[Any]) -> Use[DataStage[Any]]:
    return Use(record=record, options=record.options(), given=registry.spelled(record))


def _sources(registry: Registry, sources: Uses, eval_sources: Uses) -> Iterable[tuple[Key, Problem]]:
    """What stands under a source's name must be one, and all must give the same."""
    first = sources[0].record
    for table, uses in (("data", sources), ("eval", eval_sources)):
        for number, use in enumerate(uses):
            key: Key = (table, "source", number)
            if use.record.takes != "nothing":
                fix = f"Move it to [[data.stage]]; sources: {_names_that_take(registry, 'nothing')}"
                yield key, Problem(what=f'"{use.record.name}" is a stage, not a source', fix=fix)
            elif first.takes == "nothing" and use.record.gives != first.gives:
                what = f'"{use.record.name}" gives {use.record.gives}, but "{first.name}" gives {first.gives}'
                yield key, Problem(what=what, fix="Use sources of one kind")


def _no_sources(stages: Uses) -> Iterable[tuple[Key, Problem]]:
    for number, use in enumerate(stages):
        if use.record.takes == "nothing":
            what = f'"{use.record.name}" is a source, not a stage'
            yield ("data", "stage", number), Problem(what=what, fix="Move it to [[data.source]]")


def _names_that_take(registry: Registry, flow: str) -> str:
    stages = (p.record for p in registry.provided if isinstance(p.record, DataStage))
    return ", ".join(sorted(stage.name for stage in stages if stage.takes == flow)) or "none"
