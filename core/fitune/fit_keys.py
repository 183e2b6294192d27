"""What can be wrong with the keys of a recipe that leave strategies, or the cut of a step, to be chosen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fitune.errors import Problem, RecipeError, nearest
from fitune.fit.levers import must_be_asked
from fitune.recipe import Recipe
from fitune.records import MemoryStrategy
from fitune.registry import Registry
from fitune.toml_source import Key


def fit_problems(recipe: Recipe, registry: Registry, values: Mapping[str, Any]) -> Iterator[tuple[Key, Problem]]:
    """Each with its key; `values` are what the recipe itself says."""
    yield from _of_card(recipe)
    yield from _of_allowed(recipe, registry)
    yield from _of_batch(recipe, values)


def is_file(fit: object) -> bool:
    """Whether `[memory] fit` is the path of a card's description."""
    return isinstance(fit, str) and fit.strip().lower().endswith(".toml")


def _of_card(recipe: Recipe) -> Iterator[tuple[Key, Problem]]:
    from fitune.forecast.cards import card_or_budget

    wanted = recipe.memory.fit
    if not isinstance(wanted, str):
        return
    try:
        card_or_budget(wanted)
    except RecipeError as error:
        yield ("memory", "fit"), Problem(what=error.message, fix="Or write fit = true for this machine's GPU")


def _of_allowed(recipe: Recipe, registry: Registry) -> Iterator[tuple[Key, Problem]]:
    allowed = recipe.memory.allow
    at: Key = ("memory", "allow")
    if allowed and not recipe.memory.fit:
        fix = "Set fit, e.g. fit = true, or name the strategies as [[memory.strategy]]"
        yield at, Problem(what='"allow" has no effect without "fit"', fix=fix)
    records = {p.record.name: p.record for p in registry.provided if isinstance(p.record, MemoryStrategy)}
    may = sorted(name for name, record in records.items() if must_be_asked(record))
    named = {use.record.name for use in recipe.strategies}
    for number, name in enumerate(allowed):
        if name not in records:
            yield at, Problem(what=f'there is no memory strategy "{name}"', fix=nearest(name, may))
        elif name not in may:
            why = "needs no permission" if records[name].fit else "is never chosen by itself"
            fix = "Remove it" if records[name].fit else f'Name it: [[memory.strategy]] use = "{name}"'
            yield at, Problem(what=f'"{name}" {why}', fix=fix)
        elif name in named or name in allowed[:number]:
            where = "as a [[memory.strategy]]" if name in named else "in the list"
            yield at, Problem(what=f'"{name}" stands {where} already', fix="Remove it here")


def _of_batch(recipe: Recipe, values: Mapping[str, Any]) -> Iterator[tuple[Key, Problem]]:
    tokens, length = recipe.train.batch_tokens, recipe.train.length
    if tokens is None:
        return
    at: Key = ("train", "batch_tokens")
    if not recipe.memory.fit:
        what = '"batch_tokens" has no effect without [memory] fit, which cuts a step into micro-batches'
        yield at, Problem(what=what, fix="Set it, e.g. fit = true, or give micro_batch and accumulation")
    if "micro_batch" in values.get("train", {}):
        what = '"micro_batch" says what "batch_tokens" leaves to be chosen'
        yield ("train", "micro_batch"), Problem(what=what, fix="Keep one of them")
    for number, use in enumerate(recipe.strategies):
        if use.record.name == "accumulation":
            what = '"accumulation" says what [train] batch_tokens leaves to be chosen'
            yield ("memory", "strategy", number), Problem(what=what, fix="Keep one of them")
    if tokens % length:
        low = tokens // length * length
        near = f"{low} or {low + length}" if low else str(length)
        yield (
            at,
            Problem(what=f'"batch_tokens" is {tokens}, which is no multiple of length = {length}', fix=f"Give {near}"),
        )
