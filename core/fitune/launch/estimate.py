"""What a run takes of a machine: memory, hours and money, each as far as it is known, before any of it is spent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from functools import partial

from fitune.checkpoint.begin import begun_from
from fitune.compose.model import planned
from fitune.compose.parts import steps_of
from fitune.data.prepare import UNWATCHED, Watch
from fitune.data.run_data import RunData, gather
from fitune.errors import FtError, RunError, sentences
from fitune.memory.cards.cards import Card, find_card, local_card
from fitune.memory.cards.pace import Pace
from fitune.memory.cards.several import several
from fitune.memory.fast import with_fast
from fitune.memory.fit.report import options_of, worded
from fitune.memory.fit.resolve import fit
from fitune.memory.forecast import Forecast, forecast
from fitune.memory.shapes import shapes_of_data
from fitune.memory.timing import time_of
from fitune.memory.trace.twins import twins_of
from fitune.plugin.launching import HERE, Launcher, Machine, Price
from fitune.plugin.recipe import Recipe
from fitune.plugin.registry import Registry
from fitune.plugin.units import gib
from fitune.runs.history.words import duration_text

MEASURED, BY_DATA_SHEET = (1.0, 1.10), (1.0, 1.25)
"""By which runs took longer than their forecast: with rates that were measured of the card, 0 to 9 % on an H200, and by
shares of a data sheet's rates 10 to 24 % there (benchmarks/fit/compositions.json); other cards were not measured."""

STALE = 90
"""Days after which a price is told to be of long ago."""

TRIED = 3
"""Larger machines that a run is forecast on, where one is too small."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What is known before a run is sent."""

    recipe: Recipe
    """With what `[memory] fit` chooses for the machine's card."""
    machine: Machine
    forecast: Forecast | None
    """None without a card."""
    steps: int
    seconds: tuple[float, float] | None
    """Of all steps: the least and the most; None where the speed of the machine is not known."""

    @property
    def hours(self) -> tuple[float, float] | None:
        """The same in hours."""
        return None if self.seconds is None else (self.seconds[0] / 3600, self.seconds[1] / 3600)


def estimate(
    recipe: Recipe, registry: Registry, launcher: Launcher[object], machine: Machine, watch: Watch = UNWATCHED
) -> Estimate:
    """Prepare the data and forecast the run on a machine's card. Raises `RunError` if it does not fit, with what would;
    and the errors of `fitune.errors` for bad data.
    """
    card = card_of(machine)
    planned(recipe, gpu=card is not None)  # what is wrong with it is told before data are read
    begun_from(recipe)  # and what is wrong with the run that its adapter goes on from
    data = gather(recipe, watch)
    found = None
    if card is not None:
        recipe, found = _forecast(recipe, registry, data, card)
        if not found.passes:
            raise RunError(_too_small(recipe, registry, data, launcher, machine, found))
    plan = planned(recipe, gpu=card is not None, processes=max(1, machine.gpus))[1]
    steps = steps_of(recipe, plan.accumulation, len(data.data.rows), plan.replicas)
    seconds = None
    if found is not None:
        least, most = MEASURED if Pace(found.card).origin.rates is not None else BY_DATA_SHEET
        step = time_of(found).seconds.step
        seconds = (least * step * steps, most * step * steps)
    return Estimate(recipe=recipe, machine=machine, forecast=found, steps=steps, seconds=seconds)


def card_of(machine: Machine) -> Card | None:
    """A machine's card, or one of those that it has; None without one. Raises `RecipeError` for one not known."""
    if not machine.gpu:
        return None
    card = local_card() if machine.gpu == HERE else find_card(machine.gpu)
    return card if card is None or machine.gpus < 2 else several(card, machine.gpus)


def _forecast(recipe: Recipe, registry: Registry, data: RunData, card: Card) -> tuple[Recipe, Forecast]:
    """Of the recipe, which runs there with what `[memory] fast` adds, or of what `[memory] fit` makes of it for this
    card, whatever card it names itself.
    """
    if recipe.memory.fit:
        fitted = fit(recipe, registry, partial(shapes_of_data, data=data), card)
        return fitted.recipe, fitted.forecast
    return recipe, _as_it_is(recipe, registry, data, card)


def _as_it_is(recipe: Recipe, registry: Registry, data: RunData, card: Card) -> Forecast:
    """Of a recipe without `fit`, or one that `fit` has made, with what is added to it on this card."""
    made = with_fast(recipe, registry, card).recipe
    return forecast(made, shapes_of_data(made, data), card, twins_of(registry))


def _too_small(
    recipe: Recipe, registry: Registry, data: RunData, launcher: Launcher[object], machine: Machine, found: Forecast
) -> str:
    """By how much it does not fit, and what would."""
    what = (
        f"{recipe.general.name} does not fit on {machine.name}: by forecast it needs "
        f"{gib(found.needed + found.margin)} of {gib(found.card.usable)} that its {found.card.name} has beside "
        "its context. Nothing was sent"
    )
    ways = [
        *_by_strategies(recipe, registry, data, found.card),
        *_by_machine(recipe, registry, data, launcher, machine),
    ]
    return sentences(what, *(ways or ["See: ft plan --levers"]))


def _by_strategies(recipe: Recipe, registry: Registry, data: RunData, card: Card) -> Iterator[str]:
    """What `[memory] fit` would do about it."""
    try:
        fitted = fit(
            replace(recipe, memory=replace(recipe.memory, fit=card.name)),
            registry,
            partial(shapes_of_data, data=data),
            card,
        )
    except FtError:
        return
    names = ", ".join(worded(str(table["use"]), options_of(table)) for table in fitted.chosen.tables) or "no strategy"
    yield f"It would fit with --set memory.fit=true ({names})"


def _by_machine(
    recipe: Recipe, registry: Registry, data: RunData, launcher: Launcher[object], machine: Machine
) -> Iterator[str]:
    """The first of the launcher's machines, cheapest first, on which it would fit as it is."""
    here = card_of(machine)
    assert here is not None
    tried: set[str] = set()
    for other in launcher.machines:
        if other.gpus != 1 or other.gpu in tried or find_card(other.gpu).usable <= here.usable:
            continue
        tried.add(other.gpu)
        if len(tried) > TRIED:
            return
        found = _as_it_is(recipe, registry, data, find_card(other.gpu))
        if found.passes:
            yield f"It would fit as it is with --instance {other.name} ({found.card.name})"
            return


def lines(found: Estimate, limit: int | None, today: date, *, paid: bool) -> Iterator[str]:
    """What a person is to know before it is sent; `paid` is whether such machines cost money by the hour."""
    forecast_, machine = found.forecast, found.machine
    if forecast_ is None:
        yield "memory   not forecast: the machine has no GPU that is known"
    else:
        yield (
            f"memory   {gib(forecast_.needed + forecast_.margin)} of {gib(forecast_.card.usable)} by forecast: "
            f"it fits, {gib(max(0, forecast_.spare))} to spare"
        )
    if found.seconds is None:
        yield f"time     not forecast; {found.steps:,} steps"
    else:
        assert forecast_ is not None
        origin = Pace(forecast_.card).origin
        share = (MEASURED if origin.rates is not None else BY_DATA_SHEET)[1]
        yield (
            f"time     {span(found.seconds)} for {found.steps:,} steps by forecast, start, evaluations and saves aside "
            f"(up to {share - 1:.0%} longer, as runs on an H200 have taken; speeds {origin.says})"
        )
    if paid or machine.price is not None:
        yield f"cost     {_cost(found, machine.price, today)}"
    if limit is not None:
        most = "" if machine.price is None else f", ${machine.price.hour * limit / 3600:,.2f} at most"
        yield f"limit    {duration_text(limit)}: then it is asked to save, and ends{most}"


def span(seconds: tuple[float, float]) -> str:
    """From the least to the most."""
    least, most = map(duration_text, seconds)
    return least if least == most else f"{least} to {most}"


def _cost(found: Estimate, price: Price | None, today: date) -> str:
    if price is None:
        return "no price is known of this machine, and none is guessed"
    said = f"at ${price.hour:,.2f} an hour ({price.source}, {price.date}{_age(price, today)})"
    if found.hours is None:
        return f"not forecast; {said}"
    least, most = (hours * price.hour for hours in found.hours)
    return f"${least:,.2f} to ${most:,.2f} {said}"


def _age(price: Price, today: date) -> str:
    """What is to be said of a price of long ago."""
    days = (today - date.fromisoformat(price.date)).days
    return f": {days} days ago, so it may have changed: look it up" if days > STALE else ""
