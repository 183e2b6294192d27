"""Where a run is to be, and whether it begins there or goes on: what `ft run` decides before anything is loaded."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import tomli_w

from fitune.checkpoint.final import final_damage
from fitune.compose.processes import again_file
from fitune.errors import FtError, RecipeError, RunError
from fitune.plugin.options import toml_text
from fitune.plugin.recipe import Recipe
from fitune.plugin.registry import Registry
from fitune.recipe.places import data_places, model_place
from fitune.recipe.reader import read_recipe, read_recipe_text
from fitune.recipe.source import TomlSource
from fitune.runs.atomic import is_left_over
from fitune.runs.identity import Identity, must_be_allowed, read_identity, recipe_differences
from fitune.runs.layout import IDENTITY, RECIPE, read_json, read_toml
from fitune.runs.lock import LEFT_OVER
from fitune.runs.provenance import changed_recipe
from fitune.runs.used_plugins import kept_plugins, must_have_plugins, plugins_of
from fitune.train.resume import Resume, plugin_changes

RUNS = Path("runs")

CHOSEN_BY = ("model", "adapter", "memory", "train", "eval.micro_batch")
"""Keys that what `[memory] fit` chooses depends on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A run that is to begin, or to go on."""

    recipe: Recipe
    """As it is asked for."""
    directory: Path
    resume: Resume | None = None
    """What is known of it, where it goes on."""
    done: bool = False
    """Whether it has trained to its end, so that there is nothing to do."""
    named: bool = True
    """Whether the directory was named, and not made up of the recipe's name and the time."""


def start_of(
    given: Path | Recipe,
    registry: Registry,
    overrides: Sequence[str],
    *,
    out: Path | None,
    resume: bool,
    allowed: Sequence[str],
    model: Path | None = None,
    data: Sequence[Path] = (),
) -> Start:
    """What `ft run GIVEN` is to do. Raises `RecipeError` and `RunError`.

    A directory of a run goes on; a recipe, or the file of one, begins, or with `resume` goes on in `out`, or in its
    newest run that is not done. Differences from what the run was must be under the `allowed` keys. `model` and `data`
    are where these are now: that they are what they were is told by what is in them.
    """
    places = _places(given, model, data) if model is not None or data else []
    overrides = [*overrides, *places]
    if isinstance(given, Path) and given.is_dir():
        if out is not None:
            raise RunError(f"--out has no effect with {given}, which is a run's directory and goes on there. Remove it")
        return _going_on(given, _recipe_of(given, registry, overrides), registry, allowed, places)
    recipe = given if isinstance(given, Recipe) else _read_for(out if resume else None, given, registry, overrides)
    if resume:
        directory = out or _newest(recipe)
        if (directory / IDENTITY).exists() or _holds(directory, recipe.adapter.record.directory):
            recipe = _added_to_as(directory, _parted_as(directory, recipe, given, overrides), given, overrides)
            return _going_on(directory, recipe, registry, allowed, places)
        return Start(recipe=recipe, directory=directory, resume=None)
    if allowed:
        raise RunError("--allow-changed is for a run that goes on: give its directory, or --resume")
    made_up = RUNS / f"{recipe.general.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    return Start(recipe=recipe, directory=out or made_up, named=out is not None)


def start_again(registry: Registry) -> Start | None:
    """What a process of `ft run --gpus` is to do that was started again; None for one that was not. The run knows by
    then what was asked for, wherever it is kept. Raises `RecipeError` and `RunError`.
    """
    file = again_file()
    if file is None or not file.exists():
        return None
    directory = Path(json.loads(file.read_text(encoding="utf-8"))["directory"])
    return start_of(directory, registry, (), out=None, resume=False, allowed=())


def _read_for(run: Path | None, recipe: Path, registry: Registry, overrides: Sequence[str]) -> Recipe:
    """A recipe that is read, to go on with a run, where one is there: what that was made with may be missing here."""
    try:
        return read_recipe(recipe, registry, overrides)
    except RecipeError:
        if run is not None:
            must_have_plugins(run, kept_plugins(run), registry)
        raise


def _places(given: Path | Recipe, model: Path | None, data: Sequence[Path]) -> list[str]:
    """Overrides that give the base and the data new places. Raises `RunError`."""
    if isinstance(given, Recipe):
        raise RunError("new places of the model and the data are for a recipe that is read. Change the recipe itself")
    identity = read_identity(given) if given.is_dir() else None
    file = given / RECIPE if given.is_dir() else given
    places = {**model_place(model), **data_places(read_toml(file) if identity is None else identity.recipe, data)}
    return [f"{key}={toml_text(str(path.absolute()))}" for key, path in places.items()]


def make_directory(start: Start) -> tuple[Start, list[Path]]:
    """Make the run's directory; gives the start, with the directory's name, and those that had to be made, the
    innermost first. One that was made up is the run's own: several may start within a second.

    Raises `RunError` if it cannot be made or written to, or if it holds another run.
    """
    directory = start.directory
    try:
        made = [path for path in directory.parents if not path.exists()]
        if start.named:
            made = made if directory.exists() else [directory, *made]
            directory.mkdir(parents=True, exist_ok=True)
        else:
            directory = _own(directory)
            start, made = replace(start, directory=directory), [directory, *made]
        if start.resume is None and any(not _is_left_over(place) for place in directory.iterdir()):
            again = f"To go on with what it holds: ft run {directory}. " if (directory / IDENTITY).exists() else ""
            raise RunError(f"{directory} is not empty: nothing in it is overwritten. {again}Give another --out")
    except OSError as error:
        raise RunError(f"{directory} cannot be made: {error.strerror}. Give another --out") from error
    if not os.access(directory, os.W_OK):
        raise RunError(f"{directory} cannot be written to: permission denied. Give another --out")
    return start, made


def _own(directory: Path) -> Path:
    """A new directory of this name, or of its first number that is free. Raises `OSError`."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        place = directory if number == 1 else directory.with_name(f"{directory.name}-{number}")
        with contextlib.suppress(FileExistsError):
            place.mkdir()
            return place
    raise AssertionError("numbers do not end")


def _is_left_over(place: Path) -> bool:
    """Whether it is what a run may leave that was killed before it had written anything whole."""
    return (place.name in LEFT_OVER and not place.is_symlink()) or is_left_over(place)


def remove_if_empty(directories: Sequence[Path]) -> None:
    """Leave no litter of a run that ended before it wrote anything."""
    for directory in directories:
        try:
            directory.rmdir()
        except OSError:  # it holds a run
            return


def _going_on(
    directory: Path, recipe: Recipe, registry: Registry, allowed: Sequence[str], places: Sequence[str]
) -> Start:
    identity = read_identity(directory)
    changed = []
    if identity is not None:
        changed = recipe_differences(_as_it_reads_now(directory, identity, registry, places), recipe.to_toml())
    wrong = final_damage(directory, recipe.adapter.record.directory)
    done = not changed and wrong is None
    others = [] if done or identity is None else plugin_changes(identity, plugins_of(registry, recipe))
    must_be_allowed(directory, [*changed, *others], allowed)
    refit = any(one.key == key or one.key.startswith(f"{key}.") for one in changed for key in CHOSEN_BY)
    trained = directory / recipe.adapter.record.directory
    damaged = f"{trained}: {wrong}" if wrong is not None and os.path.lexists(trained) else None
    resume = Resume(identity=identity, allowed=tuple(allowed), refit=refit, damaged=damaged)
    return Start(recipe=recipe, directory=directory, resume=resume, done=done)


def _parted_as(run: Path, recipe: Recipe, given: Path | Recipe, overrides: Sequence[str]) -> Recipe:
    """A recipe that does not say by which rule rows are held out: for a run of before 0.2, by what that knew."""
    identity = read_identity(run)
    began = None if identity is None else identity.recipe.get("eval", {}).get("split")
    if began != "by_row" or recipe.evaluation.fraction is None:
        return recipe
    if isinstance(given, Path) and "split" in TomlSource.read(given, overrides).values["eval"]:
        return recipe
    return replace(recipe, evaluation=replace(recipe.evaluation, split="by_row"))


def _added_to_as(run: Path, recipe: Recipe, given: Path | Recipe, overrides: Sequence[str]) -> Recipe:
    """A recipe that does not say `[memory] fast`: without, for a run that began so, e.g. before there was the key."""
    identity = read_identity(run)
    began = None if identity is None else identity.recipe.get("memory")
    if not (isinstance(began, Mapping) and began.get("fast") is False and recipe.memory.fast):
        return recipe
    if isinstance(given, Path) and "fast" in TomlSource.read(given, overrides).values.get("memory", {}):
        return recipe
    return replace(recipe, memory=replace(recipe.memory, fast=False))


def _as_it_reads_now(run: Path, identity: Identity, registry: Registry, places: Sequence[str]) -> Mapping[str, object]:
    """The recipe of a run with every choice explicit: an option that came with a later release has its default, which
    is what the run did without it. What has a new place has it here too: what is in it tells whether it is what it was.
    Where it cannot be read any more, as it was written.
    """
    try:
        text = tomli_w.dumps(identity.recipe)
        return read_recipe_text(run / IDENTITY, text, registry, places, look=False).to_toml()
    except FtError:
        return identity.recipe


def _recipe_of(run: Path, registry: Registry, overrides: Sequence[str]) -> Recipe:
    """As the run was asked for. Raises `RunError` if the directory holds no run."""
    identity: Identity | None = read_identity(run)
    if identity is not None:
        try:
            return read_recipe_text(run / IDENTITY, tomli_w.dumps(identity.recipe), registry, overrides)
        except RecipeError:
            must_have_plugins(run, identity.plugins, registry)
            raise
    if (run / RECIPE).is_file():  # it ended before it had begun to train
        if (changed := changed_recipe(run)) is not None:  # and nothing else tells what it was
            raise RunError(changed)
        return read_recipe(run / RECIPE, registry, overrides)
    raise RunError(f"{run} holds no run: there is no {IDENTITY} in it. Give a recipe, or the directory of a run")


def _newest(recipe: Recipe) -> Path:
    """The newest run of a recipe's name that is not done. Raises `RunError` if there is none."""
    found = [
        place
        for place in RUNS.glob("*")
        if place.name.startswith(f"{recipe.general.name}-")
        and (place / IDENTITY).is_file()
        and _name_of(place) == recipe.general.name
        and final_damage(place, recipe.adapter.record.directory) is not None
    ]
    if not found:
        raise RunError(
            f'no run of "{recipe.general.name}" in {RUNS} could go on. Name its directory with --out, or leave '
            "--resume out to start one"
        )
    return max(found, key=lambda place: (place / IDENTITY).stat().st_mtime_ns)


def _name_of(run: Path) -> object:
    """The name that a run bears; None where it cannot be read, which keeps nobody from going on with another."""
    found = read_json(run / IDENTITY).get("recipe")
    return found.get("name") if isinstance(found, dict) else None


def _holds(directory: Path, trained: str) -> bool:
    """Whether a directory holds the files of a run that had not begun to train when it ended."""
    return (directory / RECIPE).is_file() or (directory / trained).is_dir()
