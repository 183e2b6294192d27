"""Forecasts of tiny models on a card, and what a layer keeps in them for the backward pass."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from fitune.memory.cards.cards import find_card
from fitune.memory.shapes import shapes_of_recipe
from fitune.memory.trace.log import MemoryLog
from fitune.memory.trace.run import Trace, trace
from support.architectures import recipe_of


def traced(directory: Path, *strategies: str, name: str = "llama", card: str = "a10g", **named: Any) -> Trace:
    """Two steps of a tiny model with these strategies, without values."""
    recipe = recipe_of(directory, name, *strategies, **named)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return trace(recipe, shapes_of_recipe(recipe, 1), find_card(card))


def saved(log: MemoryLog) -> int:
    """Bytes of activations that the second step's backward pass begins with."""
    start = next(start for start, phase, step in log.phases if (phase, step) == ("backward", 2))
    alive: dict[int, int] = {}
    for number in log.events[:start]:
        if number > 0:
            alive[number] = log.blocks[number - 1].bytes
        else:
            del alive[-number]
    return sum(size for number, size in alive.items() if log.blocks[number - 1].kind == "saved activations")
