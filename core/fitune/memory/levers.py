"""Every change to a recipe that may save memory, each traced anew: what it saves, and what it costs."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fitune.errors import FtError
from fitune.memory.changes import accumulated, levers_of_strategies
from fitune.memory.forecast import Forecast, forecast
from fitune.memory.shapes import Shapes
from fitune.plugin.levers import Lever
from fitune.plugin.recipe import Recipe
from fitune.plugin.records import MemoryTwin
from fitune.plugin.registry import Registry
from fitune.recipe.reader import read_recipe
from fitune.runs.layout import RECIPE
from fitune.runs.provenance import write_recipe

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Shape = Callable[[Recipe], Shapes]
"""The batches of a recipe that a lever has changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A lever, traced."""

    lever: Lever
    recipe: Recipe
    """The recipe with the lever applied."""
    forecast: Forecast
    saved: int
    """Bytes of the least that the run needs of the card; negative where it needs more."""
    saved_allocated: int
    """Bytes of the most that is allocated."""
    compute: float
    """Floating-point operations for each token that is trained on, as a share more (or less) than without: 0.33 is a
    third more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A lever that this recipe cannot take."""

    lever: Lever
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plant:
    """Where levers are tried: a recipe as it was read, and what has been forecast of it."""

    recipe: Recipe
    registry: Registry
    overrides: Sequence[str]
    """What the recipe was read with (`--set`)."""
    shape: Shape
    base: Forecast
    twins: Sequence[MemoryTwin] = ()


def levers(recipe: Recipe, registry: Registry, config: PreTrainedConfig, processes: int = 1) -> list[Lever]:
    """Every lever for this recipe: those that plugins offer, those of memory strategies, and the loop's own.

    Of equal ones the first counts, so that a plugin may say more of its strategy than is known of it here.
    """
    offered = [lever for _, found in registry.call("ft_levers", recipe=recipe, config=config) for lever in found or ()]
    unique: dict[tuple[str, ...], Lever] = {}
    of_strategies = levers_of_strategies(recipe, registry, config, processes)
    for lever in (*offered, *of_strategies, *_loop(recipe, registry)):
        unique.setdefault(lever.overrides, lever)
    return list(unique.values())


def as_file(recipe: Recipe, registry: Registry, stack: contextlib.ExitStack) -> Recipe:
    """A recipe that was made here as one that was read from a file, which is there as long as the stack: levers are
    changes to such a one.
    """
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    write_recipe(recipe, directory)
    return read_recipe(directory / RECIPE, registry)


def measure(plant: Plant, chosen: Iterable[Lever]) -> Iterator[Measured | Refused]:
    """Trace the recipe with each lever by itself."""
    for lever in chosen:
        try:
            yield _measured(plant, lever)
        except FtError as error:
            yield Refused(lever=lever, reason=_without_place(error.lines[0], plant.recipe.path))


def _without_place(line: str, recipe: Path) -> str:
    """What is wrong, without where: no line of the recipe holds the lever."""
    return re.sub(rf"^{re.escape(str(recipe))}:(\d+: )?\s*", "", line)


def _measured(plant: Plant, lever: Lever) -> Measured:
    recipe = read_recipe(plant.recipe.path, plant.registry, (*plant.overrides, *lever.overrides))
    found = forecast(recipe, plant.shape(recipe), plant.base.card, plant.twins)
    base = plant.base
    return Measured(
        lever=lever,
        recipe=recipe,
        forecast=found,
        saved=base.needed - found.needed,
        saved_allocated=base.allocated - found.allocated,
        compute=found.trace.flops_per_token / base.trace.flops_per_token - 1,
    )


def _loop(recipe: Recipe, registry: Registry) -> Iterator[Lever]:
    """What the loop itself can give."""
    train, evaluation = recipe.train, recipe.evaluation
    rows = train.micro_batch
    twice = accumulated(recipe, registry, 2)
    if rows % 2 == 0 and twice is not None:
        yield Lever(
            name=f"micro_batch {rows} to {rows // 2}, accumulated twice as often",
            changes=(("train.micro_batch", rows // 2), twice),
            exact=True,
            remark="the same rows to a step",
        )
    yield Lever(
        name=f"length {train.length} to {train.length // 2}",
        changes=(("train.length", max(2, train.length // 2)),),
        exact=False,
        remark="longer rows are cut, or packed into more rows",
    )
    held_out = recipe.eval_sources or recipe.evaluation.fraction
    if held_out and evaluation.micro_batch > 1:
        change = ("eval.micro_batch", 1)
        yield Lever(name=f"[eval] micro_batch {evaluation.micro_batch} to 1", changes=(change,), exact=True)


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
    offered = levers(plant.recipe, plant.registry, plant.base.trace.config, plant.base.card.count)
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
        offered = levers(plant.recipe, plant.registry, plant.base.trace.config, plant.base.card.count)
        measured = _helping(plant, [lever for lever in offered if lever.name in names])
    return ()
