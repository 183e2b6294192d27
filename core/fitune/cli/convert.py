"""`ft convert`: a configuration of another tool as a recipe, and an account of each of its keys."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fitune.cli.new_files import write_new
from fitune.cli.printing import say
from fitune.cli.settings import Settings, switches

if TYPE_CHECKING:
    from fitune.plugin.registry import Registry
    from fitune.recipe.foreign.convert import Conversion


@click.command("convert")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--to", metavar="FILE", type=click.Path(path_type=Path), help="Write the recipe there. Overwrites nothing."
)
@click.option(
    "--from",
    "kind",
    metavar="TOOL",
    default="",
    help="axolotl, llama-factory, trl-sft, trl-dpo, trl-kto, trl-reward, trl-orpo, trl-cpo.  [default: by its keys]",
)
@click.option(
    "--dataset-info",
    "info",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="LLaMA-Factory's dataset_info.json.  [default: that in its dataset_dir]",
)
@switches
@click.pass_obj
def convert_command(settings: Settings, file: Path, to: Path | None, kind: str, info: Path | None) -> None:
    """Turn FILE, a configuration of TRL, axolotl or LLaMA-Factory (YAML or JSON), into a recipe.

    Each of its keys is accounted for: converted, not needed, or could not be. The recipe is printed, and the account on
    standard error.
    """
    from fitune.errors import RunError, cause, nearest
    from fitune.recipe.foreign.convert import KINDS, convert

    if kind and kind not in KINDS:
        raise RunError(f"--from {kind}: no such tool. {nearest(kind, KINDS)}")
    if info is not None and not info.is_file():
        raise RunError(f"--dataset-info {info}: no such file. Give LLaMA-Factory's dataset_info.json")
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise RunError(f"{file} cannot be read: {cause(error)}. Give the configuration's path") from error
    except UnicodeDecodeError as error:
        raise RunError(f"{file}: not UTF-8 text (byte {error.start}). Save it as UTF-8") from None
    registry = settings.registry()
    made = convert(text, file, registry, kind=kind, to=to, info=info)
    if to is None:
        say(made.text.rstrip("\n"))
        sys.stdout.flush()  # before what is said of it on standard error
    else:
        write_new({to: made.text, **{to.parent / name: content for name, content in made.files.items()}})
    _account(made, file)
    _check(made, to, registry)


def _account(made: Conversion, file: Path) -> None:
    """Say what became of each key."""
    from fitune.recipe.foreign.convert import numbers

    counted = ", ".join(f"{number} {name}" for name, number in numbers(made.accounts).items())
    say(f"{file}, a configuration of {made.kind} (--from says another): {len(made.accounts)} keys, {counted}", err=True)
    for outcome in ("could not", "not needed"):
        why: dict[str, list[str]] = {}
        for one in made.accounts:
            if one.outcome == outcome:
                why.setdefault(one.says, []).append(f"{one.key}: {one.value}" if outcome == "could not" else one.key)
        if why:
            say(f"{outcome}:", err=True)
        for says, keys in why.items():
            say(f"  {', '.join(keys)}", err=True)
            say(f"      {says}", err=True)
    if made.differs:
        say("different:", err=True)
    for text in made.differs:
        say(f"  {text}", err=True)


def _check(made: Conversion, to: Path | None, registry: Registry) -> None:
    """Say whether the recipe can be run as it is."""
    from fitune.errors import RecipeError
    from fitune.recipe.reader import read_recipe_text

    path = to or Path("recipe.toml")
    try:
        read_recipe_text(path, made.text, registry)
    except RecipeError as error:
        say("to be mended before it can run:", err=True)
        for line in error.lines:
            say(f"  {line}", err=True)
        return
    say(f"checked: no problem found. Next: ft data {path}; ft plan {path}", err=True)
