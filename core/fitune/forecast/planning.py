"""`ft plan`: a recipe, a card, and what the one takes of the other."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from fitune.compose import planned
from fitune.errors import RunError
from fitune.forecast.cards import Card, budget_card, find_card, local_card, parse_size
from fitune.forecast.forecast import forecast
from fitune.forecast.levers import Measured, Plant, Refused, levers, measure
from fitune.forecast.report import json_of, lever_lines, text
from fitune.forecast.shapes import Shapes, shapes_of_recipe, shapes_of_rows
from fitune.forecast.twins import twins_of
from fitune.prepare import context_of, held_out_data, tokenizer_of, training_data
from fitune.reader import read_recipe
from fitune.recipe import Recipe
from fitune.registry import Registry


def plan(
    path: Path,
    registry: Registry,
    overrides: Sequence[str],
    *,
    gpu: str | None,
    budget: str | None,
    data: bool,
    with_levers: bool,
    as_json: bool,
) -> None:
    """Print what a recipe's run takes of a card. Raises the errors of `fitune.errors`."""
    recipe = read_recipe(path, registry, overrides)
    card = card_of(gpu, budget)
    shape = shapes_of_data if data else of_recipe
    twins = twins_of(registry)
    gc.freeze()  # what is imported stays: to look through it for garbage would take a tenth of the time
    try:
        base = forecast(recipe, shape(recipe), card, twins)
    finally:
        gc.unfreeze()
    found: Iterator[Measured | Refused] | None = None
    if with_levers:
        plant = Plant(recipe=recipe, registry=registry, overrides=overrides, shape=shape, base=base, twins=twins)
        found = measure(plant, levers(recipe, registry, base.rehearsal.config))
    if as_json:
        click.echo(json.dumps(json_of(base, found), indent=2))
        return
    for line in text(base, recipe.general.name):
        click.echo(line)
    if found is not None:
        click.echo()
        for line in lever_lines(recipe, found):
            click.echo(line)


def card_of(gpu: str | None, budget: str | None) -> Card:
    """The card that is named, a budget of bytes, or this machine's. Raises `FtError`."""
    if gpu and budget:
        raise RunError("--gpu and --budget say two things. Give one of them")
    if gpu:
        return find_card(gpu)
    local = local_card()
    if budget:
        return budget_card(parse_size(budget), local)
    if local is None:
        raise RunError("this machine has no GPU, so a card must be named. Give --gpu a10g, or --budget 22.3GiB")
    return local


def of_recipe(recipe: Recipe) -> Shapes:
    """The largest batches that the recipe allows."""
    return shapes_of_recipe(recipe, accumulation_of(recipe))


def shapes_of_data(recipe: Recipe) -> Shapes:
    """The largest batches of the recipe's data, which are prepared for it."""
    context = context_of(recipe, tokenizer_of(recipe))
    rows, held_out = training_data(recipe, context).rows, held_out_data(recipe, context)
    return shapes_of_rows(recipe, context, accumulation_of(recipe), rows, held_out.rows if held_out else ())


def accumulation_of(recipe: Recipe) -> int:
    """Micro-batches to a step."""
    return planned(recipe, gpu=True)[1].accumulation
