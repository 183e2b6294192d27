"""The command `ft run`, made for the command line to add. What it needs is imported when it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fitune.compose.processes import is_main_process

if TYPE_CHECKING:
    from fitune.cli.settings import Settings
    from fitune.plugin.registry import Registry
    from fitune.train.start import Start

Decorator = Callable[[Any], Any]


def run_command(switches: Decorator, recipe_argument: Decorator, set_option: Decorator) -> click.Command:
    """The command, with the switches that every command has, its recipe and its `--set`."""

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
        help="Go on though this key of the recipe, or its data or model, has changed; may be repeated.",
    )
    @click.option("--force", is_flag=True, help="Run even if the forecast says that the card is too small.")
    @switches
    @click.pass_obj
    def run(settings: Settings, /, recipe: Path, overrides: Sequence[str], force: bool, **asked: Any) -> None:
        """Train as RECIPE says. On a GPU its memory is forecast first; a run that will not fit is refused.

        RECIPE may be the directory of a run, which then goes on from its newest checkpoint. Exit codes: 0 if it is
        done, 2 for an error, 3 if it was asked to stop (SIGINT, SIGTERM), has saved and can go on.
        """
        from fitune.cli.output import lenient_output
        from fitune.runs.lock import RunLock
        from fitune.train.start import make_directory, remove_if_empty, start_of

        registry = settings.registry()
        start = start_of(recipe, registry, overrides, **asked)
        if start.done:
            _tidy(start.directory)
            click.echo(f"{start.directory} is done: there is nothing to go on with")
            return
        made = make_directory(start) if is_main_process() else []
        try:
            with lenient_output(), RunLock(start.directory) if is_main_process() else contextlib.nullcontext():
                _train(start, registry, settings.third_party, force)
        finally:
            remove_if_empty(made)

    command: click.Command = run
    return command


def _tidy(directory: Path) -> None:
    """Delete what a process left that was killed once the run was done, if nobody is at work there."""
    from fitune.errors import RunError
    from fitune.runs.atomic import sweep
    from fitune.runs.lock import RunLock

    if is_main_process():
        with contextlib.suppress(RunError), RunLock(directory):
            sweep(directory)


def _train(start: Start, registry: Registry, third_party: bool, force: bool) -> None:
    from rich.console import Console

    from fitune.cli.console import RunConsole
    from fitune.cli.progress import Progress
    from fitune.data.prepare import UNWATCHED
    from fitune.memory.background import beside_run
    from fitune.memory.measured import MemoryFile
    from fitune.runs.metrics import MetricsFile
    from fitune.runs.recorder import RecordFile
    from fitune.runs.tracker import Tracker
    from fitune.train.run import run

    console, main_process = Console(), is_main_process()
    if main_process:
        registry.register(RecordFile(), "fitune.record")
        registry.register(MetricsFile(), "fitune.metrics")
        registry.register(MemoryFile(), "fitune.memory")
        registry.register(Tracker(), "fitune.tracker")
        registry.register(RunConsole(console), "fitune.cli.console")
    with contextlib.ExitStack() as stack:
        forecaster = stack.enter_context(beside_run(third_party=third_party, force=force)) if main_process else None
        watch = Progress(console) if main_process else UNWATCHED
        run(start.recipe, registry, start.directory, watch, forecaster, resume=start.resume)
