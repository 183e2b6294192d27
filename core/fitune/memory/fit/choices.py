"""What a fit may choose from: the memory strategies that a recipe does not name, and the settings of each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fitune.errors import Problem, RecipeError
from fitune.plugin.options import parse
from fitune.plugin.recipe import Recipe, Use
from fitune.plugin.records import Fit, MemoryStrategy, must_be_asked
from fitune.plugin.registry import Registry

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Table = Mapping[str, object]

Picks = tuple[int, ...]
"""Of each lever the setting that is taken, by number; -1 for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lever:
    """One memory strategy that may be taken, in one of some settings."""

    record: MemoryStrategy[Any]
    fit: Fit

    @property
    def name(self) -> str:
        """Of the strategy."""
        return self.record.name

    @property
    def changes_numbers(self) -> bool:
        """Whether a run does not learn the same with it."""
        return self.record.exact is not True


def levers_for(recipe: Recipe, registry: Registry, config: PreTrainedConfig, allow: Sequence[str]) -> list[Lever]:
    """Those that a recipe leaves to be chosen, in the order in which they stand in one: free ones first, and none
    before what it needs.
    """
    named = {use.record.name for use in recipe.strategies}
    found: list[Lever] = []
    for provided in registry.provided:
        record = provided.record
        if not isinstance(record, MemoryStrategy) or record.fit is None or registry.conflicts(provided):
            continue
        if record.name in named or (must_be_asked(record) and record.name not in allow):
            continue
        if record.fit.suits is None or record.fit.suits(config):
            found.append(Lever(record=record, fit=record.fit))
    found.sort(key=lambda lever: (not lever.fit.free, bool(lever.fit.needs)))
    known = named | {lever.name for lever in found}
    return [lever for lever in found if not lever.fit.needs or lever.fit.needs in known]


def combinations(levers: Sequence[Lever], named: set[str]) -> Iterator[Picks]:
    """Every set of levers in every setting: free ones always, others only with what they need."""
    choices = [range(0 if lever.fit.free else -1, len(lever.fit.settings)) for lever in levers]
    for picks in itertools.product(*choices):
        taken = named | {lever.name for lever, pick in zip(levers, picks, strict=True) if pick >= 0}
        if all(pick < 0 or not lever.fit.needs or lever.fit.needs in taken
               for lever, pick in zip(levers, picks, strict=True)):  # fmt: skip
            yield picks


def tables_of(levers: Sequence[Lever], picks: Picks, count: int | None) -> tuple[Table, ...]:
    """The tables of the levers that are taken; the counted one works in the first `count` layers, or in all."""
    tables = []
    for lever, pick in zip(levers, picks, strict=True):
        if pick >= 0:
            counted = {lever.fit.layers: count} if lever.fit.layers and count is not None else {}
            tables.append({"use": lever.name, **lever.fit.settings[pick], **counted})
    return tuple(tables)


def composed(
    recipe: Recipe, registry: Registry, tables: Sequence[Table], micro_batch: int, accumulation: int | None
) -> Recipe:
    """The recipe with these strategies behind its own, and nothing left to be chosen. Raises `RecipeError`."""
    uses = list(recipe.strategies)
    if accumulation is not None and accumulation > 1:
        tables = ({"use": "accumulation", "steps": accumulation}, *tables)
    uses += [_use(registry, table) for table in tables]
    made = replace(
        recipe,
        strategies=tuple(uses),
        memory=replace(recipe.memory, fit=False, allow=()),
        train=replace(recipe.train, micro_batch=micro_batch, batch_tokens=None),
    )
    _must_be_right(problem for _, found in registry.call("ft_check", recipe=made) for problem in found or ())
    return made


def _use(registry: Registry, table: Table) -> Use[MemoryStrategy[Any]]:
    record = registry.find(MemoryStrategy, str(table["use"]))
    options, problems = parse(record.options, {key: value for key, value in table.items() if key != "use"})
    _must_be_right(problems)
    _must_be_right(record.check(options))
    return Use(record=record, options=options)


def _must_be_right(problems: Any) -> None:
    found: list[Problem] = list(problems)
    if found:
        raise RecipeError([problem.sentence() for problem in found])
