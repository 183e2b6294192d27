"""The cheapest changes that make a recipe fit, each traced."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from fitune.forecast.levers import Measured, Plant, levers, measure
from fitune.lever import Lever

MOST = 3
"""Changes that are put together at most."""

FREE = 0.005
"""The share of more computation below which a change costs no time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedies:
    """What makes a recipe fit."""

    alone: tuple[Measured, ...] = ()
    """Changes that do by themselves, cheapest first; those that leave the result as it is come before all others."""
    together: tuple[Measured, ...] = ()
    """Changes that leave the result as it is, each measured on top of those before it; with the last one the recipe
    fits. Looked for where none does alone, and among those that cost no time where each that does costs some."""


def remedies(plant: Plant) -> Remedies:
    """Trace every change to a recipe that does not fit."""
    offered = levers(plant.recipe, plant.registry, plant.base.rehearsal.config)
    measured = _helping(plant, offered)
    alone = tuple(sorted((one for one in measured if one.forecast.passes), key=_cost))
    exact = [one for one in measured if one.lever.exact]
    free = [one for one in exact if one.compute < FREE]
    if alone and alone[0].lever.exact:
        return Remedies(alone=alone, together=() if alone[0] in free else _together(plant, free))
    return Remedies(alone=alone, together=_together(plant, exact))


def _helping(plant: Plant, offered: Iterable[Lever]) -> list[Measured]:
    return [one for one in measure(plant, offered) if isinstance(one, Measured) and one.saved > 0]


def _cost(one: Measured) -> tuple[int, float, int]:
    """Least first: what it does to the result, then to the time, then how many keys it changes."""
    return (
        (0 if one.lever.exact else 2 if one.lever.exact is False else 1),
        round(one.compute, 2),
        len(one.lever.changes),
    )


def _together(plant: Plant, measured: Sequence[Measured]) -> tuple[Measured, ...]:
    """The largest of these changes, then on top of it the cheapest that closes the rest, or again the largest."""
    taken: list[Measured] = []
    while measured and len(taken) < MOST:
        closing = sorted((one for one in measured if one.forecast.passes), key=_cost)
        best = closing[0] if closing else max(measured, key=lambda one: one.saved)
        taken.append(best)
        if closing:
            return tuple(taken)
        names = {one.lever.name for one in measured} - {best.lever.name}
        overrides = (*plant.overrides, *best.lever.overrides)
        plant = replace(plant, recipe=best.recipe, overrides=overrides, base=best.forecast)
        offered = levers(plant.recipe, plant.registry, plant.base.rehearsal.config)
        measured = _helping(plant, [lever for lever in offered if lever.name in names])
    return ()
