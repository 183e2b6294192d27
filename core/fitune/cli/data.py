"""`ft data`: its options. What it prints is in `show_data.py`, which is imported when it runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from fitune.cli.settings import Settings, loading_switches, recipe_argument, set_option


@click.command("data")
@recipe_argument
@set_option
@click.option("--row", type=click.IntRange(min=1), help="Show this row only, counted from 1.")
@click.option(
    "--rows", type=click.IntRange(min=0), default=2, show_default=True, help="Show so many of the first rows."
)
@click.option("--held-out", is_flag=True, help="Look at the held-out rows.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@loading_switches
@click.pass_obj
def data_command(settings: Settings, /, recipe: Path, overrides: Sequence[str], **shown: Any) -> None:
    """Show what RECIPE trains on: counts, lengths, and rows with the trained text marked. Loads no model."""
    from fitune.cli.show_data import show
    from fitune.recipe.reader import read_recipe

    registry = settings.registry()
    show(read_recipe(recipe, registry, overrides), registry, **shown)
