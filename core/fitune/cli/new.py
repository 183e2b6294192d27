"""`ft new`: asks for a model, data and a card, or takes them as options, and writes a recipe that checks and fits."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fitune.cli.new_files import write_new
from fitune.cli.printing import say
from fitune.cli.settings import Settings, switches
from fitune.errors import RunError
from fitune.memory.cards.cards import local_card

if TYPE_CHECKING:
    from fitune.cli.new_recipe import Wish

ASKED = {
    "model": "Model (a name on the hub, a directory, or a .gguf file)",
    "data": "Data (a file, a directory, or a data set's name on the hub)",
    "gpu": 'Card (e.g. "rtx 4090", a size such as 22GiB, or cpu)',
}
"""What is asked for, where it is not given."""

OBJECTIVES = ("sft", "dpo", "kto", "orpo", "simpo", "reward")


@click.command("new")
@click.option("--model", metavar="MODEL", help="A name on the hub, a directory, or a .gguf file.")
@click.option("--data", metavar="DATA", help="A file, a directory, or a data set's name on the hub.")
@click.option(
    "--gpu", metavar="CARD", help='e.g. "rtx 4090", a size such as 22GiB, or cpu.  [default: this machine\'s]'
)
@click.option(
    "--objective", type=click.Choice(OBJECTIVES), help="What is minimised.  [default: told by the data's columns]"
)
@click.option("--full", is_flag=True, help="Train every weight, not an adapter.")
@click.option("--to", metavar="FILE", type=click.Path(path_type=Path), help="[default: MODEL.toml]")
@switches
@click.pass_obj
def new_command(
    settings: Settings,
    model: str | None,
    data: str | None,
    gpu: str | None,
    objective: str | None,
    full: bool,
    to: Path | None,
) -> None:
    """Write a recipe for MODEL and DATA that fits CARD, with a word on each choice. Overwrites nothing.

    On a terminal, what is not given is asked for. Rows of local data are looked at; where the model's configuration is
    at hand, memory is forecast.
    """
    given = {"model": model, "data": data, "gpu": gpu}
    if gpu is None and local_card() is not None:
        given["gpu"] = "this"
    answered = _answers(given)
    from fitune.cli.new_recipe import Wish, made

    name = re.sub(r"[^\w.-]+", "-", Path(answered["model"]).stem).strip("-.").lower() or "recipe"
    place = to or Path(f"{name}.toml")
    if place.exists():
        raise RunError(f"{place} is there already: nothing is overwritten. Give another place: --to FILE")
    wish: Wish = Wish(name=name, objective=objective, full=full, to=place, **answered)
    recipe = made(wish, settings.registry(), tell=lambda text: say(text, err=True))
    write_new({place: recipe.text})
    for line in (*taken_for_a_name(answered["model"]), *recipe.told):
        say(line)
    say(f"Next: ft data {place}   (what is trained on)")
    say(f"      ft run {place}")


def can_ask() -> bool:
    """Whether somebody sits at a terminal."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def taken_for_a_name(model: str) -> Iterator[str]:
    """What is told of a model that could have been meant as a directory, and is not there as one."""
    path = Path(model)
    if len(path.parts) > 1 or path.suffix == ".gguf" or path.exists():
        return
    near = difflib.get_close_matches(model, sorted(p.name for p in Path().iterdir() if p.is_dir()), n=1)
    hint = f'. Did you mean "{near[0]}"?' if near else ""
    yield f"{model}: taken for a model of the hub, since there is no such directory here{hint}"


def _answers(given: dict[str, str | None]) -> dict[str, str]:
    """What is given, and answers to questions for the rest. Raises `RunError` where nobody can be asked."""
    missing = [name for name, value in given.items() if value is None]
    if missing and not can_ask():
        flags = ", ".join(f"--{name}" for name in missing)
        raise RunError(f"nobody can be asked here, which is no terminal: give {flags} (ft new --help)")
    found = {}
    for name, value in given.items():
        found[name] = value if value is not None else str(click.prompt(ASKED[name], err=True)).strip()
    return found
