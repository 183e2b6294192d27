"""The command `ft run`, made for the command line to add. What it needs is imported when it runs."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fitune.errors import RunError
from fitune.processes import is_main_process

if TYPE_CHECKING:
    from fitune.cli import Settings
    from fitune.recipe import Recipe
    from fitune.registry import Registry

Decorator = Callable[[Any], Any]


def run_command(switches: Decorator, recipe_argument: Decorator, set_option: Decorator) -> click.Command:
    """The command, with the switches that every command has, its recipe and its `--set`."""

    @click.command("run")
    @recipe_argument
    @set_option
    @click.option("--out", type=click.Path(path_type=Path), help="Directory of the run.  [default: runs/NAME-TIME]")
    @click.option("--force", is_flag=True, help="Run even if the forecast says that the card is too small.")
    @switches
    @click.pass_obj
    def run(settings: Settings, recipe: Path, overrides: Sequence[str], out: Path | None, force: bool) -> None:
        """Train as RECIPE says. On a GPU its memory is forecast first; a run that will not fit is refused."""
        from fitune.reader import read_recipe

        registry = settings.registry()
        read = read_recipe(recipe, registry, overrides)
        directory = out or Path("runs") / f"{read.general.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        main_process = is_main_process()
        made = _make_directory(directory) if main_process else []
        try:
            _train(read, registry, directory, main_process, settings.third_party, force)
        finally:
            _remove_if_empty(made)

    command: click.Command = run
    return command


def _train(
    recipe: Recipe, registry: Registry, directory: Path, main_process: bool, third_party: bool, force: bool
) -> None:
    from rich.console import Console

    from fitune.console import RunConsole
    from fitune.forecast.beside import beside_run
    from fitune.listeners import MemoryFile, MetricsFile, Tracker
    from fitune.prepare import UNWATCHED
    from fitune.progress import Progress
    from fitune.run import run

    console = Console()
    if main_process:
        registry.register(MetricsFile(), "fitune.metrics")
        registry.register(MemoryFile(), "fitune.memory")
        registry.register(Tracker(), "fitune.tracker")
        registry.register(RunConsole(console), "fitune.console")
    with contextlib.ExitStack() as stack:
        forecaster = stack.enter_context(beside_run(third_party=third_party, force=force)) if main_process else None
        run(recipe, registry, directory, Progress(console) if main_process else UNWATCHED, forecaster)


def _make_directory(directory: Path) -> list[Path]:
    """Make the run's directory, and give those that had to be made, the innermost first.

    Raises `RunError` if it cannot be made or written to, or if it holds another run.
    """
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise RunError(f"{directory} is not empty: nothing in it is overwritten. Give another --out")
    except OSError as error:
        raise RunError(f"{directory} cannot be made: {error.strerror}. Give another --out") from error
    if not os.access(directory, os.W_OK):
        raise RunError(f"{directory} cannot be written to: permission denied. Give another --out")
    return made


def _remove_if_empty(directories: Sequence[Path]) -> None:
    """Leave no litter of a run that ended before it wrote anything."""
    for directory in directories:
        try:
            directory.rmdir()
        except OSError:  # it holds a run
            return
