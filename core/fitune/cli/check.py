"""`ft check`: its options, and what it says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fitune.cli.settings import Settings, loading_switches, recipe_argument, set_option

if TYPE_CHECKING:
    from fitune.plugin.recipe import Recipe, Use


@click.command("check")
@recipe_argument
@set_option
@loading_switches
@click.pass_obj
def check_command(settings: Settings, recipe: Path, overrides: Sequence[str]) -> None:
    """Check RECIPE and all that it names, without reading a weight."""
    from fitune.recipe.reader import read_recipe

    read = read_recipe(recipe, settings.registry(), overrides)
    for notice in _of_lengths(read):
        click.echo(f"note: {notice}", err=True)
    uses: list[Use[Any]] = [read.model, read.adapter, *read.strategies, *read.sources, *read.stages]
    click.echo(f"{recipe}: no problem found ({', '.join(use.record.name for use in uses)})")


def _of_lengths(recipe: Recipe) -> tuple[str, ...]:
    """What the model makes of rows as long as the data's, which are looked at only where it matters."""
    from fitune.compose.positions import built, made_for, position_notices, table_of
    from fitune.data.prepare import context_of, held_out_data, tokenizer_of, training_data

    model = built(recipe)
    most = None if model is None else table_of(model) or made_for(model)
    if model is None or most is None or recipe.train.length <= most:
        return ()
    context = context_of(recipe, tokenizer_of(recipe))
    return position_notices(recipe, context, model, training_data(recipe, context), held_out_data(recipe, context))
