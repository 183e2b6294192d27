"""`[memory] fit`: from a recipe that leaves strategies to be chosen to one that names them all."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fitune.compose.model import built, planned
from fitune.compose.processes import process_count
from fitune.errors import ModelError, RunError
from fitune.memory.cards.cards import Card, card_or_budget, local_card
from fitune.memory.cards.observed import better_known
from fitune.memory.cards.several import several
from fitune.memory.fit.choices import Choice, choices_for
from fitune.memory.fit.estimate import SHORT
from fitune.memory.fit.kept import keep, kept, key_of_fit, one_searches
from fitune.memory.fit.no_fit import explain_no_fit
from fitune.memory.fit.result import Fitted
from fitune.memory.fit.search import NothingFits, Search
from fitune.memory.fit.space import MicroBatches, Space
from fitune.memory.fit.tracing import Shape, Traces, Trial
from fitune.memory.trace.shorten import shorten
from fitune.memory.trace.twins import twins_of
from fitune.plugin.recipe import Recipe
from fitune.plugin.registry import Registry

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MOST_ROWS = 64
"""Rows to a micro-batch, at most, where the search chooses."""

FREE_NOW = "none: what is free now, beside the context"


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a choice begins with: a model without weights takes seconds to build, so it is built once."""

    card: Card
    model: PreTrainedModel
    key: str
    """What the choice is kept under."""


def start_of_fit(recipe: Recipe, registry: Registry, shapes: Shape, card: Card) -> Start:
    """What the choice for a card begins with."""
    model = built(recipe)
    return Start(card=card, model=model, key=key_of_fit(recipe, registry, model.config, shapes(recipe), card))


def resolve(
    recipe: Recipe, registry: Registry, shapes: Shape, *, budget: int | None = None, start: Start | None = None
) -> Fitted | None:
    """What `[memory] fit` chooses; None where it is not set, or asks for this machine's GPU and there is none.

    `budget` are the bytes that torch's allocator can have now, where that is less than all of the card. `start` is this
    recipe's, where it is there already. Raises `RunError` if nothing fits.
    """
    card = card_of_fit(recipe) if start is None else start.card
    if card is None:
        return None
    if budget is not None:
        usable = min(budget, card.usable)
        card = replace(card, memory=usable, context=0, nccl=0, context_source=FREE_NOW)
        return fit(recipe, registry, shapes, card)
    return fit(recipe, registry, shapes, card, again=False, start=start)


def card_of_fit(recipe: Recipe) -> Card | None:
    """The card that a recipe is fitted to."""
    wanted = recipe.memory.fit
    local = local_card()
    if wanted is True:
        return None if local is None else several(better_known(local), process_count())
    if not wanted:
        return None
    return several(card_or_budget(wanted, local), process_count())


def fit(
    recipe: Recipe, registry: Registry, shapes: Shape, card: Card, *, again: bool = True, start: Start | None = None
) -> Fitted:
    """The fastest composition of a recipe that fits a card. Raises `RunError` with the nearest if none does.

    Unless it is to be looked for `again`, what an earlier search for the same has chosen is taken; of a run's processes
    on one machine the first searches, and the others wait for what it has chosen.
    """
    start = start or start_of_fit(recipe, registry, shapes, card)
    model, key = start.model, start.key
    tracing = Traces(recipe, registry, shapes, card, twins_of(registry))
    choices = choices_for(recipe, registry, model.config, recipe.memory.allow, processes=card.count)
    if again:
        return _searched(recipe, registry, model, tracing, key, choices)
    with one_searches(key) if card.count > 1 else nullcontext():
        before = kept(key, recipe, tracing, card, {choice.name for choice in choices})
        return before or _searched(recipe, registry, model, tracing, key, choices)


def _searched(
    recipe: Recipe, registry: Registry, model: PreTrainedModel, tracing: Traces, key: str, choices: Sequence[Choice]
) -> Fitted:
    """What a search finds, which is kept under this key."""
    card, config = tracing.card, model.config
    layers = layers_of(model)
    if layers > 1 and not can_be_short(recipe, tracing):
        layers = 1
    choices = possible(choices, recipe, tracing, 0 if layers == 1 else SHORT[0])
    space = Space(
        choices=choices,
        named=frozenset(use.record.name for use in recipe.strategies),
        rows=rows_of(recipe, card.count),
        layers=layers,
        usable=card.usable,
        plan=planned(recipe, gpu=True, processes=card.count)[1],
    )
    search = Search(space, tracing)
    try:
        made, forecast, chosen = search.run()
    except NothingFits:
        if not search.considered and tracing.own is not None:  # no memory is to blame
            raise tracing.own from None
        raise RunError(explain_no_fit(recipe, registry, config, search, tracing, card)) from None
    others = sorted(
        (one for one in search.considered.values() if one is not chosen), key=lambda one: (not one.fits, one.seconds)
    )
    keep(key, chosen, others)
    return Fitted(
        recipe=made,
        forecast=forecast,
        chosen=chosen,
        others=tuple(others),
        card=card,
        notes=(*_assumed(card), *_refused(recipe, choices, tracing)),
    )


def layers_of(model: PreTrainedModel) -> int:
    """Of a model that was just built; 1 for one that cannot be shortened."""
    layers: int = model.config.get_text_config().num_hidden_layers
    try:
        shorten(model, max(1, layers - 1))
    except ModelError:
        return 1
    return layers


def can_be_short(recipe: Recipe, tracing: Traces) -> bool:
    """Whether the recipe's own strategies and adapter have what they name in a model of a few layers too."""
    if _works(recipe, tracing, SHORT[0]):
        return True
    tracing.own = None
    tracing.reasons.clear()  # they are of the short model; what the whole one cannot do is told when it is traced
    return False


def possible(choices: Sequence[Choice], recipe: Recipe, tracing: Traces, layers: int) -> Sequence[Choice]:
    """Without those that are always taken, but cannot be with this model."""
    free = [choice for choice in choices if choice.fit.free]
    if not free or _works(recipe, tracing, layers, *free):
        return choices
    _works(recipe, tracing, layers)  # what the recipe itself cannot do is told of, and no choice is to blame
    refused = [choice for choice in free if not _works(recipe, tracing, layers, choice)]
    return [choice for choice in choices if choice not in refused]


def _works(recipe: Recipe, tracing: Traces, layers: int, *choices: Choice) -> bool:
    rows = rows_of(recipe, tracing.processes)[0]
    tables = tuple({"use": choice.name, **choice.fit.settings[0]} for choice in choices)
    accumulation = rows.accumulation if rows.chosen else None
    trial = Trial(tables=tables, micro_batch=rows.micro_batch, accumulation=accumulation)
    return tracing.short(trial, layers) is not None


def rows_of(recipe: Recipe, processes: int = 1) -> list[MicroBatches]:
    """How each process' rows of a step may be cut into micro-batches, the fewest rows first."""
    train = recipe.train
    if train.batch_tokens is None:
        accumulation = planned(recipe, gpu=True)[1].accumulation
        return [MicroBatches(micro_batch=train.micro_batch, accumulation=accumulation, chosen=False)]
    rows, rest = divmod(train.batch_tokens, train.length * processes)
    if rest:
        raise RunError(
            f"[train] batch_tokens = {train.batch_tokens} are no whole number of rows of {train.length} tokens in each "
            f"of {processes} processes. Give a multiple of {train.length * processes}"
        )
    divisors = [number for number in range(1, min(rows, MOST_ROWS) + 1) if rows % number == 0]
    return [MicroBatches(micro_batch=number, accumulation=rows // number, chosen=True) for number in divisors]


def _assumed(card: Card) -> tuple[str, ...]:
    if card.matmul and card.bandwidth and card.host_link:
        return ()
    return (f"the speeds of {card.name} are not known: times are compared as on an A10G",)


def _refused(recipe: Recipe, choices: Sequence[Choice], tracing: Traces) -> tuple[str, ...]:
    """Why what the recipe allows could not be tried."""
    known = {choice.name for choice in choices}
    missing = [name for name in recipe.memory.allow if name not in known]
    notes = [f"{name} is allowed, but does not suit this recipe" for name in missing]
    return (*notes, *(f"left out: {reason}" for reason in tracing.reasons))
