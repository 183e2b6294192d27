"""`ft plan`: its options. What it does is in `show_plan.py`, which is imported when it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from fitune.cli.settings import Settings

Decorator = Callable[[Any], Any]


def plan_command(switches: Decorator, recipe_argument: Decorator, set_option: Decorator) -> click.Command:
    """The command, with the switches that every command has, its recipe and its `--set`."""

    @click.command("plan")
    @recipe_argument
    @set_option
    @click.option(
        "--gpu",
        metavar="CARD",
        help="A card by name, e.g. a10g, or a TOML file.  [default: that of [memory] fit, else this machine's]",
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
    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    @switches
    @click.pass_obj
    def plan(settings: Settings, /, recipe: Path, overrides: Sequence[str], **asked: Any) -> None:
        """Forecast the memory of a run of RECIPE: how much, what for, and whether it fits.

        Needs no GPU and no weights.
        """
        from fitune.cli import show_plan as planning

        planning.plan(recipe, settings.registry(), overrides, planning.Asked(**asked))

    return plan
