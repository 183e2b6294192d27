"""What a fit may choose from: the memory strategies that a recipe does not name, and the settings of each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fitune.errors import RecipeError
from fitune.memory.strategies import (
    accumulating,
    is_of_several,
    must_be_right,
    plan_alone,
    records,
    strategies_of,
    use_of,
)
from fitune.plugin.recipe import Recipe
from fitune.plugin.records import Fit, MemoryStrategy, must_be_asked
from fitune.plugin.registry import Registry
from fitune.plugin.strategy import Plan
from fitune.recipe.conflicts import conflict_problems, gradient_problems

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Table = Mapping[str, object]

Picks = tuple[int, ...]
"""Of each choice the setting that is taken, by number; -1 for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One memory strategy that may be taken, in one of some settings."""

    record: MemoryStrategy[Any]
    fit: Fit
    plans: tuple[Plan, ...]
    """What each of the settings makes of a plan by itself."""
    records: bool = False
    """Whether it may record micro-batches."""

    @property
    def name(self) -> str:
        """Of the strategy."""
        return self.record.name

    @property
    def changes_numbers(self) -> bool:
        """Whether a run does not learn the same with it."""
        return self.record.exact is not True


@dataclass(frozen=True, slots=True, kw_only=True)
class Offers:
    """What plugins offer for a recipe to be chosen from."""

    choices: tuple[Choice, ...]
    unsuited: tuple[str, ...]
    """Free ones that do not suit the model: the name of each, and why."""


def choices_for(
    recipe: Recipe, registry: Registry, config: PreTrainedConfig, allow: Sequence[str], *, processes: int = 1
) -> tuple[Choice, ...]:
    """Those that a recipe leaves to be chosen (`offers`)."""
    return offers(recipe, registry, config, allow, processes=processes).choices


def offers(
    recipe: Recipe, registry: Registry, config: PreTrainedConfig, allow: Sequence[str], *, processes: int = 1
) -> Offers:
    """Those that a recipe leaves to be chosen, in the order in which they stand in one: free ones first, and none
    before what it needs; what shards weights over processes is none for a single one, what takes gradients as they come
    none for several, nor where the recipe asks for what is known of all of them alone, and what is free none where
    `[memory] fast` is off.
    """
    named = {use.record.name for use in recipe.strategies}
    found: list[Choice] = []
    unsuited: list[str] = []
    for record in strategies_of(registry):
        fit = record.fit
        if fit is None or record.name in named or (must_be_asked(record) and record.name not in allow):
            continue
        if fit.free and not recipe.memory.fast:
            continue
        if processes == 1 and is_of_several(record):
            continue
        if any(gradient_problems(recipe, record, ())) or ("gradients" in record.makes and processes > 1):
            continue
        if fit.suits is None or fit.suits(config):
            plans = tuple(plan_alone(record, setting, processes=processes) for setting in fit.settings)
            found.append(Choice(record=record, fit=fit, plans=plans, records=records(record)))
        elif fit.free and fit.unsuited:
            unsuited.append(f"{record.name}: {fit.unsuited}")
    found.sort(key=lambda choice: (not choice.fit.free, bool(choice.fit.needs)))
    known = named | {choice.name for choice in found}
    taken = tuple(choice for choice in found if not choice.fit.needs or choice.fit.needs in known)
    return Offers(choices=taken, unsuited=tuple(unsuited))


def combinations(choices: Sequence[Choice], named: set[str]) -> Iterator[Picks]:
    """Every set of choices in every setting: free ones always, others only with what they need, and none that records
    micro-batches beside one that keeps it from that.
    """
    settings = [range(0 if choice.fit.free else -1, len(choice.fit.settings)) for choice in choices]
    for picks in itertools.product(*settings):
        taken = [(choice, choice.plans[pick]) for choice, pick in zip(choices, picks, strict=True) if pick >= 0]
        known = named | {choice.name for choice, _ in taken}
        if any(choice.fit.needs and choice.fit.needs not in known for choice, _ in taken):
            continue
        if not (any(choice.records for choice, _ in taken) and any(plan.unrecorded for _, plan in taken)):
            yield picks


def tables_of(choices: Sequence[Choice], picks: Picks, count: int | None) -> tuple[Table, ...]:
    """The tables of the choices that are taken; the counted one works in the first `count` layers, or in all."""
    tables = []
    for choice, pick in zip(choices, picks, strict=True):
        if pick >= 0:
            counted = {choice.fit.layers: count} if choice.fit.layers and count is not None else {}
            tables.append({"use": choice.name, **choice.fit.settings[pick], **counted})
    return tuple(tables)


def composed(
    recipe: Recipe, registry: Registry, tables: Sequence[Table], micro_batch: int, accumulation: int | None
) -> Recipe:
    """The recipe with these strategies behind its own, and nothing left to be chosen. Raises `RecipeError`."""
    uses = list(recipe.strategies)
    if accumulation is not None and accumulation > 1:
        setter = accumulating(registry)
        if setter is None:
            raise RecipeError(["no memory strategy of any plugin sets how many micro-batches make a step"])
        tables = ({"use": setter.name, setter.accumulates: accumulation}, *tables)
    for table in tables:
        record = registry.find(MemoryStrategy, str(table["use"]))
        uses.append(use_of(record, {key: value for key, value in table.items() if key != "use"}))
    made = replace(
        recipe,
        strategies=tuple(uses),
        memory=replace(recipe.memory, fit=False, allow=(), fast=False),
        train=replace(recipe.train, micro_batch=micro_batch, batch_tokens=None),
    )
    must_be_right(problem for _, problem in conflict_problems(made, registry))
    must_be_right(problem for _, found in registry.call("ft_check", recipe=made) for problem in found or ())
    return made
