"""Which memory strategies a run uses: those of its recipe, or of `[memory] fit`; and tighter ones after a shortage."""

from __future__ import annotations

import torch

from fitune.compose.devices import free_memory
from fitune.compose.model import planned
from fitune.compose.together import together
from fitune.data.run_data import gather
from fitune.errors import FtError
from fitune.memory.fit.refit import Composition, Refitter, fitted
from fitune.train.context import RunContext
from fitune.train.ending import out_of_memory_error
from fitune.train.out_of_memory import OutOfMemory, room_on


def choose(context: RunContext) -> Composition:
    """What `[memory] fit` chooses, or chose when the run began; without it the recipe as it is."""
    recipe = context.recipe
    if not recipe.memory.fit:
        return Composition(recipe=recipe)
    if context.resume is not None and (chosen := context.resume.composition(context.directory, context.registry)):
        return Composition(recipe=chosen, lines=("as it was chosen when the run began",))
    planned(recipe, gpu=torch.cuda.is_available())  # what it names itself must be right before data are read
    context.run_data = gather(recipe, context.watch)
    context.timings.done("data")
    found = fitted(recipe, context.registry, context.run_data)
    context.timings.done("fit")
    return found


def choose_again(context: RunContext, shortage: OutOfMemory, refit: Refitter | None) -> Composition:
    """Free the card and choose what takes less. Raises `RunError` where the run cannot go on."""
    if not shortage.undone:
        why = "The optimizer had begun to change weights, which cannot be undone"
        raise out_of_memory_error(context, shortage, why)
    used = context.compositions
    if len(used) > context.recipe.memory.recoveries:
        why = f"It went on {len(used) - 1} times ([memory] recoveries)"
        raise out_of_memory_error(context, shortage, why)
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    context.parts = None
    free_memory(device)
    assert refit is not None
    assert context.run_data is not None
    try:
        room = together().least(room_on(device, shortage.said))  # all go on with the same
        return refit(context.recipe, used, context.run_data, room)
    except FtError as error:
        raise out_of_memory_error(context, shortage, error.message) from None
