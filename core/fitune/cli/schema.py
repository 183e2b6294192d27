"""`ft schema`: a JSON Schema of a recipe, with all plugins that are installed."""

from __future__ import annotations

import json
from pathlib import Path

import click

from fitune.cli.printing import say
from fitune.cli.settings import Settings, switches
from fitune.errors import RunError, cause


@click.command("schema")
@click.option("--out", metavar="FILE", type=click.Path(path_type=Path), help="Write it there, in place of printing it.")
@switches
@click.pass_obj
def schema_command(settings: Settings, out: Path | None) -> None:
    """Print a JSON Schema of a recipe, with every plugin that is installed.

    An editor that knows TOML schemas then completes and checks recipes: their first line names it, #:schema FILE.
    """
    from fitune.recipe.schema import schema_of
    from fitune.runs.atomic import write_file

    text = json.dumps(schema_of(settings.registry()), indent=1)
    if out is None:
        say(text)
        return
    try:
        write_file(out, text + "\n")
    except OSError as error:
        raise RunError(f"{out} could not be written: {cause(error)}. Give another --out") from error
    say(f"written: {out}")
