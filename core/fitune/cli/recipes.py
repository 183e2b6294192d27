"""`ft recipes`: those that come with the program, what they take, and a copy to begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fitune.cli.printing import say, say_json
from fitune.cli.settings import switches
from fitune.plugin.units import GIB


@click.group("recipes", invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@switches
@click.pass_context
def recipes_command(context: click.Context, as_json: bool) -> None:
    """List the recipes that come with ft: what they are for, their card, memory and time. `ft run NAME` runs one."""
    if context.invoked_subcommand is not None:
        return
    from fitune.recipe.shipped import index, shipped, title_of
    from fitune.runs.history.words import aligned

    known = index()
    entries = [{"name": name, "title": title_of(path), **known.get(name, {})} for name, path in shipped().items()]
    if as_json:
        say_json(entries)
        return
    say("\n".join(aligned([("NAME", "CARD", "MEMORY", "STEP"), *map(_row, entries)])))
    say("\nMemory and time are forecasts. ft recipes show NAME prints one, ft recipes copy NAME copies it.")


def _row(entry: dict[str, Any]) -> tuple[str, str, str, str]:
    if "card" not in entry:
        return entry["name"], "-", "-", "-"
    seconds = entry["seconds"]
    memory = f"{entry['reserved'] / GIB:.1f} GiB"
    return entry["name"], entry["card"], memory, "-" if seconds is None else f"{seconds:.1f} s"


@recipes_command.command()
@click.argument("name")
@switches
def show(name: str) -> None:
    """Print the recipe NAME."""
    from fitune.recipe.shipped import named

    say(named(name).read_text(encoding="utf-8").rstrip("\n"))


@recipes_command.command()
@click.argument("name")
@click.argument("to", metavar="[FILE]", required=False, type=click.Path(path_type=Path))
@switches
def copy(name: str, to: Path | None) -> None:
    """Copy the recipe NAME, and the data that stand beside it, to FILE (NAME.toml). Overwrites nothing."""
    from fitune.recipe.shipped import copy as copied

    for place in copied(name, to or Path(f"{name}.toml")):
        say(f"written: {place}")
