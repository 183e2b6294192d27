"""`ft run`: trains as a recipe says, or goes on with a run. What it needs is imported when it runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from fitune.cli.places import data_option, model_option
from fitune.cli.printing import say
from fitune.cli.settings import Settings, loading_switches, recipe_argument, set_option


@click.command("run")
@recipe_argument
@set_option
@click.option("--out", type=click.Path(path_type=Path), help="Directory of the run.  [default: runs/NAME-TIME]")
@click.option("--resume", is_flag=True, help="Go on in --out, or in the newest run of RECIPE that is not done.")
@click.option(
    "--allow-changed",
    "allowed",
    multiple=True,
    metavar="KEY",
    help="Go on though this key of the recipe, or its data, model or plugins, have changed; may be repeated.",
)
@click.option("--force", is_flag=True, help="Run even if the forecast says that the card is too small.")
@model_option
@data_option
@click.option("--timings", "timed", is_flag=True, help="Print how long each phase takes up to the first step.")
@click.option("--keep-going", is_flag=True, help="Go on where the terminal or its connection is lost (SIGHUP).")
@click.option("--gpus", type=click.IntRange(1), metavar="N", help="Train on N GPUs of this machine, a process each.")
@click.option(
    "--processes",
    type=click.IntRange(1),
    metavar="N",
    help="Train in N processes without GPUs, e.g. to try a recipe for several.",
)
@click.option(
    "--remote",
    metavar="URL",
    help="Keep the run on object storage too, e.g. s3://BUCKET/PREFIX, and go on with what is there.",
)
@loading_switches
@click.pass_obj
def run_command(
    settings: Settings,
    /,
    recipe: Path,
    overrides: Sequence[str],
    force: bool,
    timed: bool,
    keep_going: bool,
    gpus: int | None,
    processes: int | None,
    remote: str | None,
    **asked: Any,
) -> None:
    """Train as RECIPE says. On a GPU its memory is forecast first; a run that will not fit is refused.

    RECIPE may be the directory of a run, which then goes on from its newest checkpoint. Exit codes: 0 if it is done, 2
    for an error, 3 if it was asked to stop (SIGINT, SIGTERM, SIGHUP), has saved and can go on.
    """

    from fitune.cli.output import lenient_output
    from fitune.cli.progress import Progress
    from fitune.cli.text_console import TextConsole
    from fitune.compose.processes import is_main_process
    from fitune.data.prepare import UNWATCHED
    from fitune.plugin.timings import Timings, process_begun
    from fitune.train.read_ahead import reading_ahead
    from fitune.train.signals import ignore_hangup
    from fitune.train.start import start_again, start_of

    several = (gpus or processes or 1) > 1 or bool(gpus and processes)
    if several:
        from fitune.cli.several import must_be_one_start, run_several

        must_be_one_start(gpus, processes)
    environment = {}
    if remote is not None:
        from fitune.launch.remote import FETCHED, attach

        environment = {FETCHED: remote}
        told = attach(remote, asked["out"], settings.registry(), processes=gpus or processes or 1)
        asked["resume"] = True
        if told is not None:
            say(f"note: {told}", err=True)
    if several:
        asked |= {"gpus": gpus, "processes": processes, "keep_going": keep_going}
        run_several(settings, recipe, overrides, environment=environment, **asked)
        return

    timings = Timings(begun=process_begun(), say=_say_phase if timed else None)
    if keep_going:
        ignore_hangup()
    registry = settings.registry()
    start = start_again(registry) or start_of(recipe, registry, overrides, **asked)
    timings.done("recipe")
    with lenient_output(), reading_ahead(None if start.done else start.recipe):
        from fitune.train.begin import begin  # imports torch, for seconds: what is wrong with a recipe was told before

        timings.done("imports")
        watch = Progress(TextConsole()) if is_main_process() else UNWATCHED
        begin(start, registry, force=force, watch=watch, timings=timings)
    if start.done and is_main_process():
        say(f"{start.directory} is done: there is nothing to go on with")


def _say_phase(phase: str, seconds: float) -> None:
    say(f"{seconds:8.2f} s  {phase}", err=True)
