"""Whether all that a recipe names goes together, by what the records say of each other (`fitune.plugin.relations`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from fitune.errors import Problem
from fitune.plugin.recipe import Recipe, Use
from fitune.plugin.records import MemoryStrategy
from fitune.plugin.registry import Registry
from fitune.plugin.relations import ROLES
from fitune.recipe.source import Key

TABLES: Mapping[str, str] = {
    "model loader": "[model]",
    "adapter": "[adapter]",
    "objective": "[objective]",
    "memory strategy": "a [[memory.strategy]]",
    "data stage": "a [[data.stage]]",
    "listener": "a [[listener]]",
}
"""Where a recipe names a provider, by its kind."""

Named = Sequence[tuple[Key, Use[Any]]]


def conflict_problems(recipe: Recipe, registry: Registry) -> Iterator[tuple[Key, Problem]]:
    """Each with its key: pairs that exclude each other, what is missing, and what is made twice."""
    named = list(_named(recipe))
    yield from _conflicts(named)
    yield from _missing(named, registry)
    yield from _twice(recipe)
    for number, use in enumerate(recipe.strategies):
        yield from gradient_problems(recipe, use.record, ("memory", "strategy", number, "use"))


def gradient_problems(recipe: Recipe, record: MemoryStrategy[Any], at: Key) -> Iterator[tuple[Key, Problem]]:
    """What a recipe asks for that a strategy cannot give which takes gradients as they come, named `at` this key: all
    that is known only when every gradient has come. Each with its key.
    """
    if "gradients" not in record.makes:
        return
    why, remove = f'"{record.name}" changes weights as gradients come', f'or remove "{record.name}"'
    if recipe.train.max_grad_norm:
        what = f'{why}, before the norm of all is known, by which "max_grad_norm" would clip them'
        yield ("train", "max_grad_norm"), Problem(what=what, fix=f"Set max_grad_norm = 0, {remove}")
    if recipe.train.non_finite == "skip":
        what = f'{why}, so that a step cannot be left out that turns out not to be finite, as "non_finite" asks'
        yield ("train", "non_finite"), Problem(what=what, fix=f'Set non_finite = "stop", {remove}')
    said: list[tuple[int, Key]] = [(recipe.train.accumulation or 1, ("train", "accumulation"))]
    said += [(getattr(use.options, use.record.accumulates), at) for use in recipe.strategies if use.record.accumulates]
    for steps, key in said:
        if steps > 1:
            what = f"{why}, so that a step is one micro-batch, and here it is {steps}"
            yield key, Problem(what=what, fix=f"Accumulate nothing, {remove}")


def _named(recipe: Recipe) -> Iterator[tuple[Key, Use[Any]]]:
    """All that a recipe uses, strategies first: they say most of others."""
    tables: tuple[tuple[Key, Sequence[Use[Any]]], ...] = (
        (("memory", "strategy"), recipe.strategies),
        (("data", "source"), recipe.sources),
        (("data", "stage"), recipe.stages),
        (("eval", "source"), recipe.eval_sources),
        (("listener",), recipe.listeners),
    )
    for at, uses in tables:
        yield from (((*at, number, "use"), use) for number, use in enumerate(uses))
    yield ("adapter", "use"), recipe.adapter
    yield ("objective", "use"), recipe.objective
    yield ("model", "use"), recipe.model


def _conflicts(named: Named) -> Iterator[tuple[Key, Problem]]:
    told: set[frozenset[str]] = set()
    for key, use in named:
        for _, other in named:
            pair = frozenset((use.record.name, other.record.name))
            why = next(
                (why for name, why in use.record.conflicts_with.items() if other.record.is_called((name,))), None
            )
            if why is not None and other is not use and pair not in told:
                told.add(pair)
                what = f'"{use.record.name}" cannot be used with "{other.record.name}": {why}'
                yield key, Problem(what=what, fix="Remove one of the two")


def _missing(named: Named, registry: Registry) -> Iterator[tuple[Key, Problem]]:
    for key, use in named:
        for name, why in use.record.requires.items():
            if not any(other.record.is_called((name,)) for _, other in named):
                kinds = [one.kind for one in registry.provided if one.record.name == name and one.kind in TABLES]
                fix = f'Write {TABLES[kinds[0]]} with use = "{name}"' if kinds else f'Install what has "{name}"'
                yield key, Problem(what=f'"{use.record.name}" needs "{name}": {why}', fix=f"{fix}, or remove it")


def _twice(recipe: Recipe) -> Iterator[tuple[Key, Problem]]:
    numbered = enumerate(recipe.strategies)
    for (_, one), (number, other) in combinations(numbered, 2):
        for role in ROLES:
            if role in one.record.makes and role in other.record.makes:
                what = f'"{one.record.name}" and "{other.record.name}" both {ROLES[role]}'
                yield ("memory", "strategy", number, "use"), Problem(what=what, fix="Keep one of them")
