"""What a run's adapter goes on from: what another run has trained, as `[adapter] from` names it."""

from __future__ import annotations

from pathlib import Path

from fitune.checkpoint.final import final_damage
from fitune.checkpoint.manifest import NAME, damage
from fitune.errors import RunError
from fitune.plugin.options import to_table, toml_text
from fitune.plugin.recipe import Recipe
from fitune.runs.base import base_of, base_text, kept_base
from fitune.runs.layout import CHECKPOINTS, RECIPE, read_toml


def begun_from(recipe: Recipe) -> Path | None:
    """The directory of the weights that a recipe's adapter goes on from, whole and of the same base; None for a new
    adapter. Raises `RunError`.
    """
    place, kind = recipe.adapter.start, recipe.adapter.record.directory
    if place is None:
        return None
    of_checkpoint = place.parent.name == CHECKPOINTS and (place / NAME).is_file()
    run, key = place.parents[1] if of_checkpoint else place, f"[adapter] from = {place}"
    if not (run / RECIPE).is_file():
        what = "no such directory" if not place.exists() else f"it is no run's directory, for it holds no {RECIPE}"
        raise RunError(f"{key}: {what}. Give a directory that ft run wrote, or one of its checkpoints")
    wrong = damage(place) if of_checkpoint else final_damage(run, kind)
    if wrong is None and not any((place / kind).glob("*.safetensors")):
        wrong = "it holds no weights"
    if wrong is not None:
        raise RunError(f"{key}: {kind} cannot be used: {wrong}. Let that run end (ft run {run}), or name a checkpoint")
    _must_have_tokens(recipe, run, key)
    before, now = kept_base(run), base_of(recipe)
    if before is not None and before != now:
        raise RunError(
            f"{key}: it was trained on another base: {base_text(before)} there, {base_text(now)} here. Name that base "
            "in [model]: an adapter is of use on the very weights that it was trained on"
        )
    return place / kind


def _must_have_tokens(recipe: Recipe, run: Path, key: str) -> None:
    """Raise `RunError` if a run has added other tokens than a recipe does: their ids would be those of others."""
    table = read_toml(run / RECIPE).get("model")
    for name, now in to_table(recipe.model.tokens).items():
        before = table.get(name, []) if isinstance(table, dict) else []
        if before != now:
            raise RunError(
                f"{key}: it was trained with [model] {name} = {toml_text(before)}, and here it is {toml_text(now)}. "
                "Give it the same, in the same order"
            )
