"""Which memory strategies a run uses: those of its recipe, and what `[memory]` adds: `fit`, or on a GPU `fast`; and
tighter ones after a shortage.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from fitune.compose.devices import free_memory, make_accelerator
from fitune.compose.model import planned
from fitune.compose.processes import is_main_process, process_count
from fitune.compose.together import together
from fitune.data.run_data import gather
from fitune.errors import FtError, RunError
from fitune.memory.fast import card_here, with_fast
from fitune.memory.fit.refit import Composition, Refitter, fitted
from fitune.plugin.recipe import Recipe
from fitune.train.context import RunContext
from fitune.train.ending import out_of_memory_error, too_often
from fitune.train.handover import Handover, composition_of, table_of
from fitune.train.out_of_memory import OutOfMemory, room_on

AS_IT_BEGAN = "as it was chosen when the run began"


def choose(context: RunContext) -> Composition:
    """What `[memory] fit` or `fast` choose, or chose when the run began; without them the recipe as it is."""
    recipe = context.recipe
    if not recipe.memory.fit:
        return _with_fast(context)
    if (chosen := _before(context)) is not None:
        return Composition(recipe=chosen, lines=(AS_IT_BEGAN,))
    planned(recipe, gpu=torch.cuda.is_available())  # what it names itself must be right before data are read
    context.run_data = gather(recipe, context.watch)
    context.timings.done("data")
    found = fitted(recipe, context.registry, context.run_data)
    context.timings.done("fit")
    return found


def _before(context: RunContext) -> Recipe | None:
    """What a run that goes on has used last; None of one that begins, and where that is to be chosen anew."""
    return None if context.resume is None else context.resume.composition(context.directory, context.registry)


def _with_fast(context: RunContext) -> Composition:
    """The recipe with what `[memory] fast` adds on a GPU, or added when the run began."""
    recipe = context.recipe
    card = card_here() if recipe.memory.fast else None
    if card is None:
        return Composition(recipe=recipe)
    before = _before(context)
    if before is not None and not before.memory.fast:  # it was on a GPU, and what was added is named
        return Composition(recipe=_settled(replace(recipe, strategies=before.strategies)), lines=(AS_IT_BEGAN,))
    found = with_fast(recipe, context.registry, card)
    context.timings.done("strategies")
    return replace(found, recipe=_settled(found.recipe))


def _settled(recipe: Recipe) -> Recipe:
    """A recipe to which nothing more is added: its run goes on with the same strategies in later releases, too."""
    return replace(recipe, memory=replace(recipe.memory, fast=False))


def choose_again(context: RunContext, shortage: OutOfMemory, refit: Refitter | None) -> Composition:
    """Free the card and choose what takes less. Raises `RunError` where the run cannot go on."""
    if not shortage.undone:
        why = "The optimizer had begun to change weights, which cannot be undone"
        raise out_of_memory_error(context, shortage, why)
    used = context.compositions
    if len(used) > context.recipe.memory.recoveries:
        raise out_of_memory_error(context, shortage, too_often(context))
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    context.parts = None
    free_memory(device)
    assert refit is not None
    assert context.run_data is not None
    try:
        room = together().least(room_on(device, shortage.said))  # all go on with the same
        return _found_by_first(context, partial(refit, context.recipe, used, context.run_data, room))
    except FtError as error:
        raise out_of_memory_error(context, shortage, error.message) from None


def go_on_with(context: RunContext, handed: Handover, refit: Refitter | None) -> Composition:
    """What processes that are started again go on with. Raises `RunError` where they cannot."""
    make_accelerator()  # the processes' group, in which they agree
    context.run_data = gather(context.recipe, context.watch)
    used, context.shortage = handed.shortage(context.registry)
    context.compositions.extend(used)
    return choose_again(context, context.shortage, refit)


def _found_by_first(context: RunContext, find: Callable[[], Composition]) -> Composition:
    """What the first process finds, in all of them: it alone knows what a composition was forecast to take. Raises
    `RunError` in all where it finds nothing.
    """
    if process_count() == 1:
        return find()
    told = ""
    if is_main_process():
        try:
            told = json.dumps({"found": table_of(find())})
        except FtError as error:
            told = json.dumps({"failed": error.message})
    table = json.loads(together().texts(told)[0])
    if "failed" in table:
        raise RunError(table["failed"])
    return composition_of(table["found"], context.directory, context.registry)
