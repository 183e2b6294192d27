"""The base model that a run belongs to: what was trained is of use on the very weights that it was trained on."""

from __future__ import annotations

import re
from pathlib import Path

from fitune.errors import RunError
from fitune.plugin.contract import blame
from fitune.plugin.options import to_table, toml_text
from fitune.plugin.recipe import Recipe
from fitune.runs.layout import IDENTITY, RECIPE, read_json

COMMIT = re.compile(r"[0-9a-f]{40}")

UNKNOWN = "it is not known which base this was trained on, so that the base cannot be checked"
"""Of runs that were made before it was kept, and of loaders that do not tell."""

PLACES = ("path", "id", "package", "revision")
"""Options that say where a model is, by the names that loaders give them."""


def base_of(recipe: Recipe) -> str | None:
    """The commit or a digest of a recipe's base as it is; None where its loader cannot tell. Raises `ModelError`."""
    record, options = recipe.model.record, recipe.model.options
    if record.fingerprint is None:
        return None
    with blame(f'model loader "{record.name}"'):
        return record.fingerprint(options)


def commit_of(base: str | None) -> str | None:
    """The commit of the hub, where a base came from there."""
    return base if base is not None and COMMIT.fullmatch(base) else None


def base_text(base: str | None) -> str:
    """A base, for a person."""
    if base is None:
        return "unknown"
    return f"commit {base}" if commit_of(base) else base[:19]


def kept_base(run: Path) -> str | None:
    """The base that a run's directory says it was trained on."""
    found = read_json(run / IDENTITY).get("base")
    return found if isinstance(found, str) else None


def must_be_base(run: Path, recipe: Recipe, before: str | None) -> None:
    """Raise `RunError` if the base is not the one that the run was trained on."""
    if before is None or (now := base_of(recipe)) == before:
        return
    table = to_table(recipe.model.options)
    named = ", ".join(f"{key} = {toml_text(table[key])}" for key in PLACES if table.get(key) is not None)
    where = f"{recipe.model.record.name}: {named}" if named else recipe.model.record.name
    fix = "Put the weights back that it was trained on, or name their place there"
    if (commit := commit_of(before)) is not None:
        fix = f'Set [model] revision = "{commit}" in {run / RECIPE}'
    raise RunError(
        f"{run} was trained on another base ([model] {where}): {base_text(before)} then, {base_text(now)} now. {fix}"
    )
