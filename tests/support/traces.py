"""Traces that several fits of one recipe share, and the rows that they are for."""

from __future__ import annotations

from collections.abc import Sequence

from fitune.compose.model import planned
from fitune.memory.cards.cards import Card
from fitune.memory.shapes import Shapes, shapes_of_recipe
from fitune.memory.trace.run import Trace, trace
from fitune.plugin.recipe import Recipe
from fitune.plugin.records import MemoryTwin


def shapes(recipe: Recipe) -> Shapes:
    """Full rows."""
    return shapes_of_recipe(recipe, planned(recipe, gpu=True)[1].accumulation)


class SharedTraces:
    """Of cards of one compute capability, whose traces are the same."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, tuple[int, int], int | None], Trace] = {}

    def __call__(
        self, recipe: Recipe, shapes: Shapes, card: Card, twins: Sequence[MemoryTwin] = (), *, layers: int | None = None
    ) -> Trace:
        """Trace what was not traced before."""
        if any(capability != card.capability for _, capability, _ in self.known):
            self.known.clear()
        key = repr(recipe.to_toml()), card.capability, layers
        if key not in self.known:
            self.known[key] = trace(recipe, shapes, card, twins, layers=layers)
        return self.known[key]
