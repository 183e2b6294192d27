"""`ft check`: its options, and what it says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fitune.cli.settings import Settings, loading_switches, recipe_argument, set_option

if TYPE_CHECKING:
    from fitune.plugin.recipe import Use


@click.command("check")
@recipe_argument
@set_option
@loading_switches
@click.pass_obj
def check_command(settings: Settings, recipe: Path, overrides: Sequence[str]) -> None:
    """Check RECIPE and all that it names, without reading a weight."""
    from fitune.recipe.reader import read_recipe

    read = read_recipe(recipe, settings.registry(), overrides)
    uses: list[Use[Any]] = [read.model, read.adapter, *read.strategies, *read.sources, *read.stages]
    click.echo(f"{recipe}: no problem found ({', '.join(use.record.name for use in uses)})")
