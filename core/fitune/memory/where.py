"""`ft plan --where`: which of the known cards, and how many of them, a run would fit on; the smallest come first.

No prices are known here: cards are ordered by their memory together, then by their number. What a run takes hardly
depends on the card, so that one trace for each number of cards tells which cards are worth a trace of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fitune.compose.model import planned
from fitune.errors import ModelError, RunError
from fitune.memory.cards.cards import Card, find_card, known_cards
from fitune.memory.cards.several import several
from fitune.memory.fast import with_fast
from fitune.memory.fit.resolve import fit
from fitune.memory.fit.tracing import Shape
from fitune.memory.forecast import Forecast, forecast
from fitune.memory.report import json_of_card, size
from fitune.memory.timing import json_of_time, time_of
from fitune.memory.trace.twins import twins_of
from fitune.plugin.recipe import Recipe
from fitune.plugin.registry import Registry

COUNTS = (1, 2, 4, 8)
"""Numbers of cards that hosts are sold with."""

LIKE = "h100"
"""The card that stands for all until one is looked at."""

NEARLY = 1.1
"""What a card may be too small by for this one, and is looked at all the same: kernels differ."""

LISTED = 6
"""Cards that are listed, at most."""

QUANTIZED = 4
"""By which weights may shrink where a recipe allows a strategy that changes numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """A place for a run."""

    forecast: Forecast
    strategies: tuple[str, ...]
    """Names of the memory strategies that the run would have there."""

    @property
    def card(self) -> Card:
        """The card, and how many of them."""
        return self.forecast.card


def where(recipe: Recipe, registry: Registry, shape: Shape) -> Iterator[Where]:
    """Where a run would fit, the least memory first, each as soon as it is known.

    What `[memory] fit` leaves to be chosen is chosen for each card anew. Raises `ModelError` where it cannot be traced.
    """
    found, looks = 0, Looks(recipe, registry, shape)
    for card in candidates(recipe, looks):
        place = looks.place(card)
        if place is not None:
            yield place
            found += 1
        if found == LISTED:
            return


class Looks:
    """Forecasts of a recipe's run on cards; what is found of those that stand for all is not looked for again."""

    def __init__(self, recipe: Recipe, registry: Registry, shape: Shape) -> None:
        self._recipe, self._registry, self._shape = recipe, registry, shape
        self._kept: dict[int, tuple[Recipe, Forecast]] = {}
        """On so many of the card that stands for all."""

    def least(self, count: int) -> int:
        """Bytes that the run needs of each of so many cards; of one that is to be fitted, what its weights take."""
        card, recipe = several(find_card(LIKE), count), self._recipe
        if not recipe.memory.fit:
            self._kept[count] = self._run_on(card)
            return self._kept[count][1].needed
        plain = replace(recipe, memory=replace(recipe.memory, fit=False, allow=()), strategies=())
        found = forecast(plain, self._shape(plain), several(card, 1), twins_of(self._registry))
        weights = next((phase.bytes for phase in found.ledger.phases if phase.phase == "load"), 0)
        return weights // (count * QUANTIZED if recipe.memory.allow else count)

    def place(self, card: Card) -> Where | None:
        """The run on this card; None where it does not fit."""
        if self._recipe.memory.fit:
            try:
                fitted = fit(self._recipe, self._registry, self._shape, card, again=False)
            except RunError:
                return None
            made, found = fitted.recipe, fitted.forecast
        else:
            known = card.name == find_card(LIKE).name and card.count in self._kept
            made, found = self._kept[card.count] if known else self._run_on(card)
        if not found.passes:
            return None
        return Where(forecast=found, strategies=tuple(use.record.name for use in made.strategies))

    def _run_on(self, card: Card) -> tuple[Recipe, Forecast]:
        """The recipe as a run on this card has it, and its forecast."""
        made = with_fast(self._recipe, self._registry, card).recipe
        return made, forecast(made, self._shape(made), card, twins_of(self._registry))


def candidates(recipe: Recipe, looks: Looks) -> list[Card]:
    """Of each known card the smallest number that may do, the least memory first."""
    cards: list[Card] = []
    left = list(known_cards())
    for count in counts_of(recipe):
        try:
            least = looks.least(count)
        except ModelError:
            if _must_fit_by(recipe, count):
                raise
            continue
        enough = [card for card in left if least <= NEARLY * several(card, count).usable]
        cards += [several(card, count) for card in enough]
        left = [card for card in left if card not in enough]
    return sorted(cards, key=lambda card: (card.count * card.memory, card.count))


def counts_of(recipe: Recipe) -> Sequence[int]:
    """Numbers of cards that make a difference: only shards, and rows in parts, have each card hold less."""
    if recipe.memory.fit:
        return COUNTS
    return tuple(count for count in COUNTS if count == 1 or _is_spread(recipe, count))


def _is_spread(recipe: Recipe, count: int) -> bool:
    """Whether so many cards share a model or rows; not where they cannot be put into groups for that."""
    try:
        return planned(recipe, gpu=True, processes=count)[1].interlocked
    except ModelError:
        return False


def _must_fit_by(recipe: Recipe, count: int) -> bool:
    """Whether what cannot be traced on so many cards is an error: on fewer of them, rows may be shared out evenly."""
    return count == 1 or bool(recipe.memory.fit) or planned(recipe, gpu=True, processes=count)[1].context_parallel == 1


def where_lines(name: str, places: Iterator[Where]) -> Iterator[str]:
    """The places, as a person reads them, each as soon as it is known."""
    yield f"{name} would fit on these, by forecast; the least memory first, prices are not known here"
    yield f"  {'cards':<18} {'memory':>12} {'reserved':>12} {'a step':>10} {'tokens/s':>10}  memory strategies"
    found = False
    for place in places:
        card, took = place.card, time_of(place.forecast)
        found = True
        memory, reserved = size(card.count * card.memory), size(place.forecast.reserved)
        figures = f"{memory:>12} {reserved:>12} {took.seconds.step:>8.3f} s {took.tokens_per_second:>10,.0f}"
        yield f"  {card.title:<18} {figures}  {', '.join(place.strategies) or 'none'}"
    if found:
        yield "  memory is that of all cards together, reserved is of each"
    else:
        yield f"  none: not even {COUNTS[-1]} of the largest known card would do as the recipe is. Try --fit"


def json_of_where(places: Iterator[Where]) -> list[dict[str, Any]]:
    """The same for a program; sizes are bytes of each card."""
    return [
        {
            "card": json_of_card(place.card),
            "strategies": list(place.strategies),
            "allocated": place.forecast.allocated,
            "reserved": place.forecast.reserved,
            "margin": place.forecast.margin,
            "step": json_of_time(place.forecast),
        }
        for place in places
    ]
