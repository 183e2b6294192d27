"""The recipes that come with the program: found by name, wherever one is, and copied to begin one's own with."""

from __future__ import annotations

import difflib
import json
import shutil
from pathlib import Path
from typing import Any

from fitune.errors import RunError, cause, nearest

INSTALLED = Path(__file__).parents[1] / "shipped"
"""Where a wheel has them."""

CHECKOUT = Path(__file__).parents[3] / "recipes"
"""Where they are in a checkout, which an editable installation runs from."""

INDEX = "index.json"
"""What each takes of its card, by forecast (`docs/make_recipes.py`)."""

ALIKE = 0.75
"""From which likeness on (`difflib`) a name is taken for another one, misspelled."""

SCHEMA = "#:schema "
"""How the line begins that names the schema beside a recipe."""


def directory() -> Path:
    """Where they are."""
    return INSTALLED if INSTALLED.is_dir() else CHECKOUT


def shipped() -> dict[str, Path]:
    """Each by its name."""
    return {path.stem: path for path in sorted(directory().glob("*.toml"))}


def located(given: Path) -> Path:
    """The recipe that is meant: a path as it is, or the file of a shipped one, where nothing else has that name."""
    if given.exists() or len(given.parts) != 1:
        return given
    return shipped().get(given.name.removesuffix(".toml"), given)


def meant(given: Path) -> str:
    """What is said of a recipe that is not there: the nearest that is, beside it or shipped, or where to look."""
    here = sorted(path.name for path in given.parent.glob("*.toml"))
    beside = difflib.get_close_matches(given.name, here, n=1, cutoff=ALIKE)
    names = difflib.get_close_matches(given.name.removesuffix(".toml"), shipped(), n=1, cutoff=ALIKE)
    for found in [*(str(given.with_name(name)) for name in beside), *names]:
        return f'Did you mean "{found}"?'
    return "Give the path of a recipe, or a name that ft recipes lists"


def named(name: str) -> Path:
    """The shipped recipe of this name. Raises `RunError` for a name that there is not."""
    found = shipped()
    if name not in found:
        raise RunError(f'no recipe "{name}" is shipped. {nearest(name, found)}')
    return found[name]


def index() -> dict[str, dict[str, Any]]:
    """What is known of each, by its name; empty where that is not there."""
    try:
        entries = json.loads((directory() / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {entry["name"]: entry for entry in entries}


def title_of(path: Path) -> str:
    """What a recipe is for: its first line of comment."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line.removeprefix("# ").rstrip(".") for line in lines if line.startswith("# ")), "")


def copy(name: str, to: Path) -> list[Path]:
    """Copy a shipped recipe, and the data that stand beside it; gives what was written.

    Raises `RunError` for a name that there is not, and where something is there already: nothing is overwritten.
    """
    recipe = named(name)
    data = recipe.with_suffix("")
    places = [to, *([to.parent / data.name] if data.is_dir() else [])]
    if there := next((place for place in places if place.exists()), None):
        raise RunError(f"{there} is there already: nothing is overwritten. Give another place")
    lines = recipe.read_text(encoding="utf-8").splitlines(keepends=True)
    try:
        to.write_text("".join(line for line in lines if not line.startswith(SCHEMA)), encoding="utf-8")
        if data.is_dir():
            shutil.copytree(data, to.parent / data.name)
    except OSError as error:
        raise RunError(f"{to} could not be written: {cause(error)}. Give another place") from error
    return places
