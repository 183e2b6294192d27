"""`ft explain-oom`: its options. What it does is in `fitune.memory.oom`, which is imported when it runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fitune.cli.printing import say, say_json
from fitune.cli.settings import Settings, loading_switches, set_option
from fitune.errors import RunError
from fitune.runs.layout import RECIPE

if TYPE_CHECKING:
    from fitune.memory.oom.message import Figure, OutOfMemoryMessage

LOGS = ("error.txt",)
"""Files of a run's directory that may hold the message; after them, every `.log` and `.txt`."""

USAGE = "Give a log and a recipe, a run's directory, or --asked and a recipe. See: ft explain-oom --help"

LARGEST = 2**30
"""Bytes of a log that is read; the first message stands before them, if any does."""


@click.command("explain-oom")
@click.argument("paths", nargs=-1, metavar="[SOURCE] [RECIPE]", type=click.Path(path_type=Path, allow_dash=True))
@set_option
@click.option("--gpu", metavar="NAME", help="The card, where the message does not tell it, or a .toml file.")
@click.option("--asked", metavar="SIZE", help="In place of SOURCE: what torch tried to allocate, e.g. 172MiB.")
@click.option("--free", metavar="SIZE", help="With --asked: what was free.")
@click.option("--in-use", metavar="SIZE", help="With --asked: what this process had in use.")
@click.option("--total", metavar="SIZE", help="With --asked: the card's total capacity.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@loading_switches
@click.pass_obj
def explain_oom_command(
    settings: Settings,
    /,
    paths: Sequence[Path],
    overrides: Sequence[str],
    gpu: str | None,
    as_json: bool,
    **figures: str | None,
) -> None:
    """Explain why a run of RECIPE ran out of GPU memory, and what would make it fit.

    SOURCE is a log with torch's message in it, "-" for standard input, or a run's directory, which holds its
    recipe. The run is traced without weights; no GPU is needed.
    """
    message, recipe = _given(paths, figures)
    _explain(settings, message, recipe, overrides, gpu, as_json)


def _explain(
    settings: Settings,
    message: OutOfMemoryMessage,
    path: Path,
    overrides: Sequence[str],
    gpu: str | None,
    as_json: bool,
) -> None:
    from fitune.cli.text_console import TextConsole
    from fitune.recipe.reader import read_recipe

    registry = settings.registry()
    registry.forecasts = True
    recipe = read_recipe(path, registry, overrides)
    with TextConsole(stderr=True).status("tracing the run and every change to it"):
        from fitune.memory.oom.explain import explain
        from fitune.memory.oom.report import as_json as json_of
        from fitune.memory.oom.report import lines

        found = explain(recipe, registry, message, overrides=overrides, gpu=gpu)
    if as_json:
        say_json(json_of(found))
        return
    for line in lines(found):
        say(line)


def _given(paths: Sequence[Path], figures: dict[str, str | None]) -> tuple[OutOfMemoryMessage, Path]:
    """The message and the recipe that the arguments name. Raises `RunError`."""
    from fitune.memory.oom.message import OutOfMemoryMessage, read_message

    asked = figures["asked"]
    if asked is not None:
        if len(paths) != 1:
            raise RunError(f"--asked takes the place of a log: one recipe is wanted, not {len(paths)} paths. {USAGE}")
        sizes = {name: _figure(name, text) for name, text in figures.items() if text is not None}
        message = OutOfMemoryMessage(
            asked=sizes["asked"],
            free=sizes.get("free"),
            in_use=sizes.get("in_use"),
            total=sizes.get("total"),
            source="the figures",
        )
        return message, paths[0]
    without = [name for name, text in figures.items() if text is not None]
    if without:
        raise RunError(f"--{without[0].replace('_', '-')} without --asked: what did torch try to allocate? {USAGE}")
    if len(paths) not in (1, 2):
        raise RunError(USAGE)
    source = paths[0]
    if source.is_dir():
        log = _log_of(source)
        return read_message(_bytes_of(log), str(log)), paths[1] if len(paths) == 2 else source / RECIPE
    if len(paths) == 1:
        raise RunError(f"{source} is no run's directory, so its recipe is wanted too. {USAGE}")
    name = "standard input" if str(source) == "-" else str(source)
    return read_message(_bytes_of(source), name), paths[1]


def _log_of(directory: Path) -> Path:
    """The file of a run's directory that holds the message."""
    if not (directory / RECIPE).is_file():
        raise RunError(f"{directory} holds no {RECIPE}, so it is no run's directory. {USAGE}")
    found = [path for name in LOGS if (path := directory / name).is_file()]
    others = (path for path in directory.iterdir() if path.suffix in (".log", ".txt") and path.is_file())
    found += sorted(path for path in others if path not in found)
    for path in found:
        if b"out of memory" in _bytes_of(path):
            return path
    looked = f" (looked in: {', '.join(path.name for path in found)})" if found else ""
    raise RunError(f"{directory} holds no log with an out-of-memory message{looked}. Give the log and the recipe")


def _bytes_of(source: Path) -> bytes:
    if str(source) == "-":
        try:
            return sys.stdin.buffer.read(LARGEST)
        except OSError as error:
            raise RunError(f"standard input cannot be read: {error.strerror}. Give the log as a file") from error
    try:
        with source.open("rb") as file:
            return file.read(LARGEST)
    except FileNotFoundError:
        raise RunError(f"{source}: no such file. Give the log of the run that ran out of memory") from None
    except OSError as error:
        raise RunError(f"{source} cannot be read: {error.strerror}") from error


def _figure(name: str, text: str) -> Figure:
    """A size as somebody copied it from a message: it may be half of its last digit more or less."""
    from fitune.errors import RecipeError
    from fitune.memory.cards.cards import parse_size
    from fitune.memory.oom.message import Figure

    try:
        size = parse_size(text)
    except RecipeError as error:
        raise RunError(f"--{name.replace('_', '-')}: {error.message}") from None
    number = text.strip().rstrip("BbIiKkMmGgTt ")
    unit = parse_size(text.strip().replace(number, "1", 1))
    digits = len(number.partition(".")[2])
    return Figure(bytes=size, error=-(-unit // (2 * 10**digits)) if unit > 1 else 0)
