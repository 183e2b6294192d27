"""`ft runs`: its commands and their options. What they show is in `fitune.runs.history`, imported when they run."""

from __future__ import annotations

from pathlib import Path

import click

from fitune.cli.printing import say, say_json
from fitune.cli.settings import switches

HERE = "runs"
"""Where runs are unless they were told where to be."""

STATES = ("starting", "running", "interrupted", "stopped", "failed", "done", "unknown")

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class Runs(click.Group):
    """A group that lists where none of its commands is named: `ft runs DIR` is `ft runs list DIR`."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Name the command that is meant. A directory called as one of them is given as ./show."""
        first = next((one for one in args if not one.startswith("-")), None)
        if first not in self.commands and not {"-h", "--help"} & set(args):
            args = ["list", *args]
        return super().parse_args(context, args)


@click.group("runs", cls=Runs)
@switches
def runs_command() -> None:
    """List runs, show one, or compare some. `ft runs DIR` is `ft runs list DIR`."""


@runs_command.command("list")
@click.argument("directory", metavar="[DIR]", default=HERE, type=click.Path(path_type=Path))
@click.option("--state", "states", multiple=True, type=click.Choice(STATES), help="Only these; may be repeated.")
@json_option
@switches
def list_(directory: Path, states: tuple[str, ...], as_json: bool) -> None:
    """List the runs in DIR (runs), those last heard of first: state, steps, losses, memory, time."""
    from fitune.runs.history import list as listing
    from fitune.runs.history.summary import find_runs

    found = [run for run in find_runs(directory) if not states or run.state in states]
    if as_json:
        _print_json([listing.as_json(run) for run in found])
    elif found:
        _print(listing.table(found))
    else:
        _print([f"no run{' in such a state' if states else ''} in {directory}"])


@runs_command.command()
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@json_option
@switches
def show(run: Path, as_json: bool) -> None:
    """Show all that is known of the run in the directory RUN: figures, choices, checkpoints, notices."""
    from fitune.runs.history import show as showing

    story = showing.tell(run)
    if as_json:
        _print_json(showing.as_json(story))
    else:
        _print(list(showing.lines(story)))


@runs_command.command()
@click.argument("directories", metavar="RUN RUN...", nargs=-1, type=click.Path(path_type=Path))
@json_option
@switches
def compare(directories: tuple[Path, ...], as_json: bool) -> None:
    """Compare the runs in some directories: what came of them, and where recipes and versions differ."""
    from fitune.runs.history import compare as comparing

    found = comparing.compare(directories)
    if as_json:
        _print_json(comparing.as_json(found))
    else:
        _print(list(comparing.lines(found)))


def _print(lines: list[str]) -> None:
    for line in lines:
        say(line)


def _print_json(values: object) -> None:
    from fitune.runs.json_lines import finite

    say_json(finite(values))
