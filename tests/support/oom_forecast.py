"""A forecast of a tiny model that takes some memory, and what torch would say where it runs out."""

from __future__ import annotations

from pathlib import Path

from fitune.memory.cards.cards import find_card
from fitune.memory.forecast import Forecast, forecast
from fitune.memory.oom.failure import Failure
from fitune.memory.shapes import of_recipe
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry, write_recipe
from support.cuda_messages import MIB, format_size

CONTEXT = 512 * MIB
"""Of the A10G."""
TINY = {"model": {"dtype": "bfloat16"}, "train": {"micro_batch": 64, "length": 512}}


def write_many_rows(directory: Path) -> Path:
    """A recipe that takes 210 MiB: a tiny model, and many rows of it."""
    return write_recipe(directory, TINY)


def traced_of(path: Path) -> Forecast:
    """Its forecast on an A10G."""
    recipe = read_recipe(path, open_registry())
    return forecast(recipe, of_recipe(recipe), find_card("a10g"))


def text_of(failure: Failure, *, detailed: bool = True, context: int = CONTEXT) -> str:
    """What torch would say of it."""
    total = failure.capacity + context
    reserved = failure.allocated + failure.unallocated
    text = (
        f"CUDA out of memory. Tried to allocate {format_size(failure.asked)}. GPU 0 has a total capacity of "
        f"{format_size(total)} of which {format_size(failure.free)} is free. Including non-PyTorch memory, this "
        f"process has {format_size(reserved + context)} memory in use. "
    )
    if not detailed:
        return text
    return text + (
        f"Of the allocated memory {format_size(failure.allocated)} is allocated by PyTorch, and "
        f"{format_size(failure.unallocated)} is reserved by PyTorch but unallocated."
    )
