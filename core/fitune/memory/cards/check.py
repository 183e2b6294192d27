"""The check of `[memory] fit`: whether it names a card. A plugin of the core, by the hook `ft_check`."""

from __future__ import annotations

from collections.abc import Iterator

from fitune.errors import Problem, RecipeError
from fitune.plugin.hookspecs import hookimpl
from fitune.plugin.recipe import Recipe


@hookimpl
def ft_check(recipe: Recipe) -> Iterator[Problem]:
    """Name a card, a size or a description that is none."""
    from fitune.memory.cards.cards import card_or_budget

    wanted = recipe.memory.fit
    if not isinstance(wanted, str):
        return
    try:
        card_or_budget(wanted)
    except RecipeError as error:
        yield Problem(key="memory.fit", what=error.message, fix="Or write fit = true for this machine's GPU")
