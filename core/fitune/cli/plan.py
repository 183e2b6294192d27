"""`ft plan`: its options. What it does is in `show_plan.py`, which is imported when it runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from fitune.cli.settings import Settings, loading_switches, recipe_argument, set_option


@click.command("plan")
@recipe_argument
@set_option
@click.option(
    "--gpu",
    metavar="CARD",
    help="A card by name, e.g. a10g, or a TOML file.  [default: that of [memory] fit, else this machine's]",
)
@click.option(
    "--gpus", type=click.IntRange(1, 1024), metavar="N", help="How many cards of its kind, with a process on each."
)
@click.option("--budget", metavar="SIZE", help="Memory for the whole process in place of a card, e.g. 22.3GiB.")
@click.option("--data", is_flag=True, help="Prepare the data and forecast their longest rows.")
@click.option(
    "--levers", "with_levers", is_flag=True, help="Trace every change that may save memory, too (up to a minute)."
)
@click.option(
    "--fit", is_flag=True, help="Choose the memory strategies that RECIPE does not name: the fastest that fit."
)
@click.option(
    "--write",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="With --fit: write what it chooses as a recipe.",
)
@click.option("--where", is_flag=True, help="List the smallest of the known cards, and how many, that the run fits on.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@loading_switches
@click.pass_obj
def plan_command(settings: Settings, /, recipe: Path, overrides: Sequence[str], **asked: Any) -> None:
    """Forecast the memory of a run of RECIPE: how much, what for, and whether it fits.

    Needs no GPU and no weights.
    """
    from fitune.cli.asked_plan import Asked, card_of, read

    all_asked, registry = Asked(**asked), settings.registry()
    registry.forecasts = True
    planned = read(recipe, registry, overrides, all_asked)
    if all_asked.where:
        from fitune.cli.show_plan import tell_where

        tell_where(planned, registry, all_asked)
        return
    card = card_of(all_asked, planned.memory.fit)  # what is wrong with it is told before torch is imported
    from fitune.cli.show_plan import plan

    plan(planned, card, recipe, registry, overrides, all_asked)
