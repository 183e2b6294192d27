"""What `ft plan` does and prints: a recipe, a card, and what the one takes of the other."""

from __future__ import annotations

import contextlib
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fitune.cli.printing import say, say_json
from fitune.data.run_data import gather
from fitune.errors import RunError
from fitune.memory.cards.cards import Card, budget_card, card_or_budget, find_card, local_card, parse_size
from fitune.memory.cards.observed import better_known
from fitune.memory.cards.several import several
from fitune.memory.fit.report import in_short, json_of_fit, lines
from fitune.memory.fit.resolve import fit
from fitune.memory.fit.write import must_have_place, write, written
from fitune.memory.forecast import Forecast, forecast
from fitune.memory.levers import Measured, Plant, Refused, levers, measure
from fitune.memory.report import json_of, lever_lines, text
from fitune.memory.shapes import of_recipe, shapes_of_data
from fitune.memory.trace.twins import twins_of
from fitune.memory.where import json_of_where, where, where_lines
from fitune.plugin.recipe import Recipe
from fitune.plugin.registry import Registry
from fitune.recipe.reader import read_recipe
from fitune.runs.layout import RECIPE
from fitune.runs.provenance import write_recipe

if TYPE_CHECKING:
    from fitune.memory.fit.result import Fitted


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What `ft plan` is asked for beside a recipe."""

    gpu: str | None = None
    gpus: int | None = None
    budget: str | None = None
    data: bool = False
    with_levers: bool = False
    fit: bool = False
    write: Path | None = None
    where: bool = False
    as_json: bool = False

    def command(self, recipe: Path, overrides: Sequence[str]) -> str:
        """What was typed, but for what decides only how it is printed."""
        words = ["ft", "plan", str(recipe), *(word for override in overrides for word in ("--set", override))]
        words += [
            word
            for name in ("gpu", "gpus", "budget")
            if getattr(self, name)
            for word in (f"--{name}", str(getattr(self, name)))
        ]
        words += ["--data"] if self.data else []
        return shlex.join([*words, "--fit", *(["--write", str(self.write)] if self.write else [])])


def plan(path: Path, registry: Registry, overrides: Sequence[str], asked: Asked) -> None:
    """Print what a recipe's run takes of a card. Raises the errors of `fitune.errors`."""
    recipe = _read(path, registry, overrides, asked)
    if asked.where:
        _tell_where(recipe, registry, asked)
        return
    card = several(card_of(asked.gpu, asked.budget, recipe.memory.fit), asked.gpus or 1)
    shape = partial(shapes_of_data, data=gather(recipe)) if asked.data else of_recipe
    fitted = fit(recipe, registry, shape, card) if asked.fit or recipe.memory.fit else None
    if fitted is not None and asked.write is not None:
        write(written(fitted, asked.command(path, overrides)), asked.write)
    base = forecast(recipe, shape(recipe), card, twins_of(registry)) if fitted is None else fitted.forecast
    planted = recipe if fitted is None else fitted.recipe
    with contextlib.ExitStack() as stack:
        found: Iterator[Measured | Refused] | None = None
        if asked.with_levers:
            if fitted is not None:  # levers are changes to a recipe that can be read
                planted, overrides = _as_file(planted, registry, stack), ()
            plant = Plant(
                recipe=planted, registry=registry, overrides=overrides, shape=shape, base=base, twins=twins_of(registry)
            )
            found = measure(plant, levers(planted, registry, base.trace.config, card.count))
        if asked.as_json:
            of_fit = {} if fitted is None else {"fit": json_of_fit(fitted)}
            say_json({**json_of(base, found), **of_fit})
            return
        for line in _lines(recipe, base, fitted, asked):
            say(line)
        if found is not None:
            say()
            for line in lever_lines(planted, found):
                say(line)


def _tell_where(recipe: Recipe, registry: Registry, asked: Asked) -> None:
    """List the cards that the run would fit on. Raises the errors of `fitune.errors`."""
    shape = partial(shapes_of_data, data=gather(recipe)) if asked.data else of_recipe
    if asked.fit:
        recipe = replace(recipe, memory=replace(recipe.memory, fit=True))
    places = where(recipe, registry, shape)
    if asked.as_json:
        say_json({"where": json_of_where(places)})
        return
    for line in where_lines(recipe.general.name, places):
        say(line)


def _read(path: Path, registry: Registry, overrides: Sequence[str], asked: Asked) -> Recipe:
    """The recipe, and nothing asked for that cannot be done. Raises `FtError`."""
    if asked.where and (asked.gpu or asked.gpus or asked.budget or asked.with_levers or asked.write):
        raise RunError("--where looks at every known card: --gpu, --gpus, --budget, --levers and --write have no place")
    if asked.write is not None:
        if not asked.fit:
            raise RunError("--write writes what --fit chooses, so it needs that. Give --fit, too")
        must_have_place(asked.write)
    return read_recipe(path, registry, overrides)


def _lines(recipe: Recipe, base: Forecast, fitted: Fitted | None, asked: Asked) -> Iterator[str]:
    if fitted is None or not asked.fit:
        yield from text(base, recipe.general.name)
    else:
        yield from lines(fitted, recipe)
    if fitted is not None and not asked.fit:
        yield ""
        yield in_short(fitted)
    if asked.write is not None:
        yield ""
        yield f"written: {asked.write}"


def _as_file(recipe: Recipe, registry: Registry, stack: contextlib.ExitStack) -> Recipe:
    """The recipe as one that was read from a file, which is there as long as the stack."""
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    write_recipe(recipe, directory)
    return read_recipe(directory / RECIPE, registry)


def card_of(gpu: str | None, budget: str | None, fit: bool | str = False) -> Card:
    """The card that is named, a budget of bytes, that of `[memory] fit`, or this machine's. Raises `FtError`."""
    if gpu and budget:
        raise RunError("--gpu and --budget say two things. Give one of them")
    if gpu:
        return find_card(gpu)
    local = local_card()
    if budget:
        return budget_card(parse_size(budget), local)
    if isinstance(fit, str):
        return card_or_budget(fit, local)
    if local is None:
        raise RunError("this machine has no GPU, so a card must be named. Give --gpu a10g, or --budget 22.3GiB")
    return better_known(local) if fit else local
