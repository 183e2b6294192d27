"""`ft launch`: its commands and their options. What they do is in `fitune.launch`, imported when they run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from fitune.cli.numbers import Finite
from fitune.cli.printing import say, say_json
from fitune.cli.settings import (
    Settings,
    allowing,
    loading_switches,
    recipe_argument,
    set_option,
    switches,
    watch,
)

HERE = "runs"
"""Where launched runs are noted unless they were told where to come to."""

on_option = click.option(
    "--on", metavar="NAME", required=True, help="The launcher: local, ssh, sagemaker, skypilot ..."
)

settings_option = click.option(
    "--settings",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The launchers' options, a table for each.  [default: launch.toml, if it is here]",
)

options_option = click.option(
    "--option", "options", multiple=True, metavar="KEY=VALUE", help="An option of the launcher; may be repeated."
)

allow_switch = allowing("Use the launcher's options of somebody else's launch.json or launch.toml")

run_argument = click.argument("run", metavar="RUN", type=click.Path(path_type=Path))

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class Launches(click.Group):
    """A group that sends where none of its commands is named: `ft launch RECIPE` is `ft launch send RECIPE`."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Name the command that is meant. A recipe called as one of them is given as ./stop."""
        first = next((one for one in args if not one.startswith("-")), None)
        if args and first not in self.commands and not {"-h", "--help"} & set(args):
            args = ["send", *args]
        return super().parse_args(context, args)


@click.group("launch", cls=Launches)
@switches
def launch_command() -> None:
    """Run a recipe on another machine, and bring it back. `ft launch RECIPE` is `ft launch send RECIPE`."""


def _one(context: click.Context, option: click.Parameter, values: Sequence[str]) -> str | None:
    """The only value. A second one would be taken for a second machine."""
    if len(values) > 1:
        raise click.BadParameter(f"{' and '.join(values)}: a job is one machine. Name one.", context, option)
    return values[0] if values else None


@launch_command.command()
@recipe_argument
@set_option
@on_option
@click.option(
    "--instance", metavar="NAME", multiple=True, callback=_one, help="The kind of machine, e.g. ml.g5.4xlarge."
)
@click.option("--spot", is_flag=True, help="Take a machine that may be taken back at any time, at a lower price.")
@click.option("--max-cost", type=Finite(0, min_open=True), metavar="USD", help="Stop it before it costs more.")
@click.option("--hours", type=Finite(0, min_open=True), metavar="N", help="Stop it after so many hours.")
@click.option(
    "--price",
    type=Finite(0, min_open=True),
    metavar="USD",
    help="What an hour costs.  [default: what the launcher knows]",
)
@options_option
@settings_option
@click.option(
    "--environment", multiple=True, metavar="NAME", help="Give the run this variable, e.g. HF_TOKEN; may be repeated."
)
@click.option("--no-install", "install", is_flag=True, default=True, flag_value=False, help="Install no package there.")
@click.option("--out", type=click.Path(path_type=Path), help="Where the run comes to.  [default: runs/NAME-TIME]")
@click.option("--dry-run", is_flag=True, help="Look at everything, and send nothing.")
@loading_switches
@click.pass_obj
def send(
    settings: Settings,
    /,
    recipe: Path,
    overrides: Sequence[str],
    on: str,
    options: Sequence[str],
    file: Path | None,
    **asked: Any,
) -> None:
    """Send RECIPE to another machine, once it is known to fit there, and what it takes and costs."""
    from fitune.launch.send import Asked
    from fitune.launch.send import send as send_to
    from fitune.launch.settings import choose

    registry = settings.registry()
    chosen = choose(registry, on, options, file)
    for notice in chosen.notices:
        say(f"note: {notice}", err=True)
    directory = send_to(recipe, registry, overrides, chosen, Asked(**asked), say, watch())
    if directory is not None:
        say(f"sent: {directory}. Next: ft launch status {shlex.quote(str(directory))}")


@launch_command.command()
@run_argument
@json_option
@allow_switch
@switches
@click.pass_obj
def status(settings: Settings, run: Path, as_json: bool) -> None:
    """Say how the job of RUN is, and what it has cost."""
    from fitune.cli.show_launch import as_values, told
    from fitune.launch.jobs import sent

    one = sent(run, settings.registry()).ask()
    if as_json:
        say_json(as_values(run, one.launched))
        return
    for line in told(run, one.launched):
        say(line)


@launch_command.command()
@run_argument
@allow_switch
@switches
@click.pass_obj
def logs(settings: Settings, run: Path) -> None:
    """Print what the job of RUN has printed so far."""
    from fitune.launch.jobs import logs as lines_of
    from fitune.launch.jobs import sent

    for line in lines_of(sent(run, settings.registry())):
        say(line)


@launch_command.command()
@run_argument
@allow_switch
@switches
@click.pass_obj
def stop(settings: Settings, run: Path) -> None:
    """Ask the job of RUN to save and end."""
    from fitune.cli.show_launch import told
    from fitune.launch.jobs import sent
    from fitune.launch.jobs import stop as end

    for line in told(run, end(sent(run, settings.registry())).launched):
        say(line)


@launch_command.command()
@run_argument
@allow_switch
@switches
@click.pass_obj
def fetch(settings: Settings, run: Path) -> None:
    """Bring the run itself to RUN: what it trained, its records and checkpoints, as far as it is."""
    from fitune.cli.show_launch import told
    from fitune.launch.jobs import fetch as bring
    from fitune.launch.jobs import sent

    for line in told(run, bring(sent(run, settings.registry())).launched):
        say(line)
    say(f"fetched: {run}. Next: ft runs show {shlex.quote(str(run))}")


@launch_command.command("list")
@click.argument("directory", metavar="[DIR]", default=HERE, type=click.Path(path_type=Path))
@click.option("--on", metavar="NAME", help="Ask this launcher for all jobs that it knows, noted here or not.")
@options_option
@settings_option
@json_option
@allow_switch
@switches
@click.pass_obj
def list_(
    settings: Settings, directory: Path, on: str | None, options: Sequence[str], file: Path | None, as_json: bool
) -> None:
    """List the runs in DIR (runs) that were launched, as they were last heard of."""
    from fitune.cli.show_launch import as_values, known, table
    from fitune.launch.jobs import all_sent
    from fitune.launch.settings import choose

    noted = all_sent(directory)
    if on is not None:
        for line in known(choose(settings.registry(), on, options, file), noted):
            say(line)
    elif as_json:
        say_json([as_values(place, launched) for place, launched in noted])
    else:
        for line in table(noted) if noted else [f"nothing in {directory} was launched"]:
            say(line)
