"""The cheapest changes that make a recipe fit, each traced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fitune.forecast.levers import Measured, Plant, levers, measure

MOST = 3
"""Changes that are put together at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedies:
    """What makes a recipe fit."""

    alone: tuple[Measured, ...] = ()
    """Changes that do by themselves, cheapest first; those that leave the result as it is come before all others."""
    together: tuple[Measured, ...] = ()
    """Looked for where no change that leaves the result as it is does alone: each is measured on top of those before
    it, and with the last one the recipe fits."""


def remedies(plant: Plant) -> Remedies:
    """Trace every change to a recipe that does not fit."""
    measured = _measured(plant)
    alone = tuple(sorted((one for one in measured if one.forecast.passes), key=_cost))
    if any(one.lever.exact for one in alone):
        return Remedies(alone=alone)
    return Remedies(alone=alone, together=_together(plant, measured))


def _measured(plant: Plant) -> list[Measured]:
    offered = levers(plant.recipe, plant.registry, plant.base.rehearsal.config)
    return [one for one in measure(plant, offered) if isinstance(one, Measured) and one.saved > 0]


def _cost(one: Measured) -> tuple[int, float, int]:
    """Least first: what it does to the result, then to the time, then how many keys it changes."""
    return (
        (0 if one.lever.exact else 2 if one.lever.exact is False else 1),
        round(one.compute, 2),
        len(one.lever.changes),
    )


def _together(plant: Plant, measured: Sequence[Measured]) -> tuple[Measured, ...]:
    """The largest exact change, then the cheapest that closes the rest, or again the largest."""
    taken: list[Measured] = []
    while len(taken) < MOST:
        exact = [one for one in measured if one.lever.exact]
        if not exact:
            return ()
        closing = sorted((one for one in exact if one.forecast.passes), key=_cost)
        best = closing[0] if closing else max(exact, key=lambda one: one.saved)
        taken.append(best)
        if closing:
            return tuple(taken)
        overrides = (*plant.overrides, *best.lever.overrides)
        plant = replace(plant, recipe=best.recipe, overrides=overrides, base=best.forecast)
        measured = _measured(plant)
    return ()
