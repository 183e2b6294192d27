"""What to say where no composition fits: what comes nearest, what to allow, how long rows may be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from fitune.memory.cards.cards import Card
from fitune.memory.fit.additive import Sums
from fitune.memory.fit.choices import choices_for, combinations
from fitune.memory.fit.report import options_of, worded
from fitune.memory.fit.result import Considered
from fitune.memory.fit.search import Search
from fitune.memory.fit.space import Space
from fitune.memory.fit.tracing import Traces
from fitune.plugin.recipe import Recipe
from fitune.plugin.records import MemoryStrategy, must_be_asked
from fitune.plugin.registry import Registry
from fitune.plugin.units import GIB, gib

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

NEAREST = 2
"""Compositions that are told of."""


def explain_no_fit(
    recipe: Recipe, registry: Registry, config: PreTrainedConfig, search: Search, tracing: Traces, card: Card
) -> str:
    """By how much nothing fits, and what would."""
    said = [f"no composition of memory strategies fits on {card.title}, {gib(card.usable)} beside its context"]
    if not search.considered and tracing.reasons:
        return f"{said[0]}: none could be traced. {tracing.reasons[0]}"
    nearest = sorted(search.considered.values(), key=lambda one: one.reserved + one.margin)[:NEAREST]
    said += [_miss(one, card, number) for number, one in enumerate(nearest)]
    said.append(_allowed(recipe, registry, config, search.space, tracing) or _shorter(recipe, search))
    return ". ".join(said)


def _miss(one: Considered, card: Card, number: int) -> str:
    names = ", ".join(worded(str(table["use"]), options_of(table)) for table in one.tables) or "no strategy"
    missing = (one.reserved + one.margin - card.usable) / GIB
    how = "forecast" if one.confirmed else "estimated"
    return f"{'The nearest' if number == 0 else 'Next'} misses {missing:.2f} GiB ({how}): {names}"


def _allowed(recipe: Recipe, registry: Registry, config: PreTrainedConfig, space: Space, tracing: Traces) -> str:
    """What would have to be allowed for the fastest composition that fits then; nothing if none does."""
    every = [
        provided.record.name
        for provided in registry.provided
        if isinstance(provided.record, MemoryStrategy) and must_be_asked(provided.record)
    ]
    free = [choice for choice in space.choices if choice.fit.free]
    others = [choice for choice in choices_for(recipe, registry, config, every) if not choice.fit.free]
    wider = replace(space, choices=[*free, *others], rows=space.rows[:1])
    best: tuple[float, list[str]] | None = None
    for picks, seconds in fitting(wider, tracing):
        taken = [choice.name for choice, pick in zip(wider.choices, picks, strict=True) if pick >= 0]
        asked = [name for name in taken if name in every and name not in recipe.memory.allow]
        if asked and (best is None or (seconds, len(asked)) < (best[0], len(best[1]))):
            best = seconds, asked
    if best is None:
        return ""
    names = ", ".join(f'"{name}"' for name in dict.fromkeys((*recipe.memory.allow, *best[1])))
    return f"It would fit, as estimated, with [memory] allow = [{names}]"


def fitting(space: Space, tracing: Traces) -> Iterator[tuple[tuple[int, ...], float]]:
    """The compositions that seem to fit, with the seconds of a step, by sums."""
    sums = Sums(space, tracing)
    for picks in combinations(space.choices, set(space.named)):
        estimate = sums.estimate(picks)
        count = None if estimate is None else estimate.smallest(space.limit(picks))
        if estimate is not None and count is not None:
            yield picks, estimate.at(count).seconds


def _shorter(recipe: Recipe, search: Search) -> str:
    """How long rows may be at most, roughly."""
    best = 0.0
    for picks, estimate in search.looked.items():
        seen = estimate.at(estimate.layers if estimate.worked else 0)
        share = (search.space.limit(picks) - seen.standing) / max(1.0, seen.reserved - seen.standing)
        best = max(best, share)
    tokens = min(int(recipe.train.length * best), recipe.train.length - 1)  # all of it does not fit
    if tokens < 2:
        return "The weights alone do not fit: take a smaller model, or a larger card"
    rows = f" at micro_batch {recipe.train.micro_batch}" if recipe.train.micro_batch > 1 else ""
    return f"Rows of about {tokens} tokens would fit{rows} ([train] length is {recipe.train.length})"
