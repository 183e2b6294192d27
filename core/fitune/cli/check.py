"""`ft check`: its options, and what it says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fitune.cli.printing import say, say_json
from fitune.cli.settings import Settings, loading_switches, recipe_argument, set_option
from fitune.compose.encoders import must_not_say_so
from fitune.errors import RecipeError
from fitune.runs.layout import read_json

if TYPE_CHECKING:
    from fitune.plugin.recipe import Recipe, Use


@click.command("check")
@recipe_argument
@set_option
@click.option("--strict", is_flag=True, help="End with exit code 2 where there is something to note, too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@loading_switches
@click.pass_obj
def check_command(settings: Settings, recipe: Path, overrides: Sequence[str], strict: bool, as_json: bool) -> None:
    """Check RECIPE and all that it names, without reading a weight.

    What is deprecated in it is noted with its line, the release in which it is gone, and what to write.
    """
    from fitune.recipe.reader import read_recipe

    read = read_recipe(recipe, settings.registry(), overrides)
    must_not_say_so(read, _config(read))
    notices = (*read.notices, *_of_lengths(read))
    uses: list[Use[Any]] = [read.model, read.adapter, *read.strategies, *read.sources, *read.stages]
    names = [use.record.name for use in uses]
    if as_json:
        say_json({"recipe": str(recipe), "uses": names, "notices": list(notices)})
    else:
        for notice in notices:
            say(f"note: {notice}", err=True)
        say(f"{recipe}: no problem found ({', '.join(names)})")
    if strict and notices:
        raise RecipeError([f"{recipe}: {len(notices)} to be noted, and --strict takes none"])


POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")
"""What configurations call the number of positions that a model was made for."""


def _of_lengths(recipe: Recipe) -> tuple[str, ...]:
    """What the model makes of rows as long as the data's, which are looked at only where it matters."""
    if recipe.train.length <= _made_for(recipe):
        return ()
    from fitune.compose.positions import built_or_none, position_notices
    from fitune.data.prepare import context_of, held_out_data, training_data
    from fitune.data.tokenizer import tokenizer_of

    model = built_or_none(recipe)
    if model is None:
        return ()
    context = context_of(recipe, tokenizer_of(recipe))
    return position_notices(recipe, context, model, training_data(recipe, context), held_out_data(recipe, context))


def _made_for(recipe: Recipe) -> float:
    """Positions by the configuration on this disk; no end where it is not there, or says none."""
    config = _config(recipe)
    tables = (config, config.get("text_config") or {})
    known = [table[key] for table in tables for key in POSITIONS if isinstance(table, dict) and key in table]
    return min((number for number in known if isinstance(number, int)), default=math.inf)


def _config(recipe: Recipe) -> dict[str, Any]:
    """The model's configuration on this disk, read without torch; empty where it is not there."""
    place, name = getattr(recipe.model.options, "path", None), getattr(recipe.model.options, "id", None)
    file = None if place is None else Path(place) / "config.json"
    if place is None and isinstance(name, str):
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(name, "config.json", revision=getattr(recipe.model.options, "revision", None))
        file = Path(found) if isinstance(found, str) else None
    return {} if file is None else read_json(file)
