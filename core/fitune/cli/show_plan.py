"""What `ft plan` does and prints: a recipe, a card, and what the one takes of the other."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fitune.cli.asked_plan import Asked
from fitune.cli.printing import say, say_json
from fitune.data.run_data import gather
from fitune.memory.cards.cards import Card
from fitune.memory.fast import json_of_fast, with_fast
from fitune.memory.fit.refit import Composition
from fitune.memory.fit.report import in_short, json_of_fit, lines
from fitune.memory.fit.resolve import fit
from fitune.memory.fit.write import write, written
from fitune.memory.forecast import Forecast, forecast
from fitune.memory.levers import Measured, Plant, Refused, as_file, levers, measure
from fitune.memory.report import json_of, lever_lines, text
from fitune.memory.shapes import of_recipe, shapes_of_data
from fitune.memory.trace.twins import twins_of
from fitune.memory.where import json_of_where, where, where_lines
from fitune.plugin.recipe import Recipe
from fitune.plugin.registry import Registry

if TYPE_CHECKING:
    from fitune.memory.fit.result import Fitted


def plan(recipe: Recipe, card: Card, path: Path, registry: Registry, overrides: Sequence[str], asked: Asked) -> None:
    """Print what a recipe's run takes of a card. Raises the errors of `fitune.errors`."""
    shape = partial(shapes_of_data, data=gather(recipe)) if asked.data else of_recipe
    fitted = fit(recipe, registry, shape, card) if asked.fit or recipe.memory.fit else None
    if fitted is not None and asked.write is not None:
        write(written(fitted, asked.command(path, overrides)), asked.write)
    made = with_fast(recipe, registry, card) if fitted is None else Composition(recipe=fitted.recipe)
    planted = made.recipe
    base = forecast(planted, shape(planted), card, twins_of(registry)) if fitted is None else fitted.forecast
    with contextlib.ExitStack() as stack:
        found: Iterator[Measured | Refused] | None = None
        if asked.with_levers:
            if planted is not recipe:  # levers are changes to a recipe that can be read
                planted, overrides = as_file(planted, registry, stack), ()
            plant = Plant(
                recipe=planted, registry=registry, overrides=overrides, shape=shape, base=base, twins=twins_of(registry)
            )
            found = measure(plant, levers(planted, registry, base.trace.config, card.count))
        if asked.as_json:
            chosen = {"fast": json_of_fast(recipe, made)} if fitted is None else {"fit": json_of_fit(fitted)}
            say_json({**json_of(base, found), **chosen})
            return
        for line in _lines(recipe, base, made, fitted, asked):
            say(line)
        if found is not None:
            say()
            for line in lever_lines(planted, found):
                say(line)


def tell_where(recipe: Recipe, registry: Registry, asked: Asked) -> None:
    """List the cards that the run would fit on. Raises the errors of `fitune.errors`."""
    shape = partial(shapes_of_data, data=gather(recipe)) if asked.data else of_recipe
    if asked.fit:
        recipe = replace(recipe, memory=replace(recipe.memory, fit=True))
    places = where(recipe, registry, shape)
    if asked.as_json:
        say_json({"where": json_of_where(places), "notices": list(recipe.notices)})
        return
    for line in where_lines(recipe.general.name, places):
        say(line)
    for notice in recipe.notices:
        say(f"  note       {notice}")


def _lines(recipe: Recipe, base: Forecast, made: Composition, fitted: Fitted | None, asked: Asked) -> Iterator[str]:
    if fitted is None or not asked.fit:
        yield from text(base, recipe.general.name, made.lines)
    else:
        yield from lines(fitted, recipe)
    if fitted is not None and not asked.fit:
        yield ""
        yield in_short(fitted)
    if asked.write is not None:
        yield ""
        yield f"written: {asked.write}"
