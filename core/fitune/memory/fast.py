"""`[memory] fast`: on a GPU a recipe without `fit` gets the strategies that a fit would always take.

They cost no time, and change nothing but the rounding. What does not suit the model, or what the recipe names, is left
out: whether it does is seen by a trace of the first layers, which takes less than a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fitune.compose.model import built
from fitune.compose.order import in_order
from fitune.compose.processes import process_count
from fitune.errors import FtError
from fitune.memory.cards.cards import Card, local_card
from fitune.memory.cards.several import several
from fitune.memory.fit.choices import Choice, composed, offers
from fitune.memory.fit.estimate import SHORT
from fitune.memory.fit.refit import Composition
from fitune.memory.fit.tracing import Traces, Trial
from fitune.memory.shapes import of_recipe
from fitune.memory.trace.twins import twins_of
from fitune.plugin.recipe import Recipe
from fitune.plugin.registry import Registry

TURN_OFF = "--set memory.fast=false"
"""What runs a recipe as it is written."""


def card_here() -> Card | None:
    """This machine's GPU, as many as the run has processes; None without one."""
    card = local_card()
    return None if card is None else several(card, process_count())


def with_fast(recipe: Recipe, registry: Registry, card: Card) -> Composition:
    """What a run of the recipe has on a card: its own strategies, and behind them those that are free, which it lacks.

    The recipe as it is where `[memory]` says `fit`, or `fast = false`, and where nothing can be known beforehand: of a
    model that cannot be traced. What is wrong with the recipe is left to who runs it.
    """
    if recipe.memory.fit or not recipe.memory.fast:
        return Composition(recipe=recipe)
    try:
        config = built(recipe).config
    except FtError:
        why = "the model cannot be built without weights, so that nobody knows what suits it"
        return Composition(recipe=recipe, lines=(f"nothing is added by [memory] fast: {why}",))
    offered = offers(recipe, registry, config, (), processes=card.count)
    looks = _Looks(recipe, registry, card)
    taken = looks.suiting([choice for choice in offered.choices if choice.fit.free])
    lines = _lines(taken, [*offered.unsuited, *looks.refused])
    if not taken:
        return Composition(recipe=recipe, lines=lines)
    made = composed(recipe, registry, looks.tables(taken), recipe.train.micro_batch, None)
    if in_order(recipe.strategies) == recipe.strategies:  # or a plan tells that it is not the recipe's order
        made = replace(made, strategies=in_order(made.strategies))
    return Composition(recipe=made, lines=lines)


def json_of_fast(asked: Recipe, made: Composition) -> dict[str, Any]:
    """What was added to a recipe that was asked about, for a program."""
    named = {use.record.name for use in asked.strategies}
    added = [use.table() for use in made.recipe.strategies if use.record.name not in named]
    return {"strategies": added, "notes": list(made.lines)}


class _Looks:
    """Traces of the recipe with free strategies, in its first layers."""

    def __init__(self, recipe: Recipe, registry: Registry, card: Card) -> None:
        self.recipe = recipe
        self.refused: list[str] = []
        """Why strategies are left out."""
        self._tracing = Traces(recipe, registry, of_recipe, card, twins_of(registry))
        self._layers = SHORT[0]

    def tables(self, choices: Sequence[Choice]) -> tuple[dict[str, object], ...]:
        """Of the strategies, with the options that a fit would try first."""
        return tuple({"use": choice.name, **choice.fit.settings[0]} for choice in choices)

    def suiting(self, free: Sequence[Choice]) -> Sequence[Choice]:
        """All of them, or one after the other what goes together with the recipe and those before it; none where the
        recipe itself cannot be traced.
        """
        if not free or self._works(free):
            return free
        together = list(self._tracing.reasons)
        if not self._works(()):
            self._layers = 0  # its strategies may name layers that a short model does not have
            if not self._works(()):
                return ()
        taken: list[Choice] = []
        for choice in free:
            self._tracing.reasons.clear()
            if self._works([*taken, choice]):
                taken.append(choice)
            else:
                reasons = self._tracing.reasons or together  # the last of them was tried before, with all others
                self.refused += [_without_remedy(choice.name, reason) for reason in reasons]
        return taken

    def _works(self, choices: Sequence[Choice]) -> bool:
        trial = Trial(tables=self.tables(choices), micro_batch=self.recipe.train.micro_batch, accumulation=None)
        return self._tracing.short(trial, self._layers) is not None


def _without_remedy(name: str, reason: str) -> str:
    """Why a strategy is left out, without what to do: there is nothing to do."""
    why = reason.partition(". ")[0]
    return why if name in why else f"{name}: {why}"


def _lines(taken: Sequence[Choice], refused: Sequence[str]) -> tuple[str, ...]:
    names = ", ".join(choice.name for choice in taken)
    added = (f"added, since they cost no time: {names} (to leave them out: {TURN_OFF})",) if taken else ()
    return (*added, *([f"not added: {'; '.join(refused)}"] if refused else ()))
