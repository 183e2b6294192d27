"""A launcher's options: from `launch.toml`, a table for each launcher, and `--option` over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import tomli

from fitune.errors import PluginError, RecipeError, RunError, nearest
from fitune.launch.bundle import moved
from fitune.plugin.aged_options import aged
from fitune.plugin.deprecation import Release
from fitune.plugin.launching import Launcher
from fitune.plugin.options import parse, to_table
from fitune.plugin.provided import Provided, age_of
from fitune.plugin.reading import read_file
from fitune.plugin.registry import Registry
from fitune.recipe.secrets import secrets_in
from fitune.recipe.source import TomlSource
from fitune.runs.launched import FOLLOWED, LARGEST

FILE = Path("launch.toml")
"""Read where it is there, in the working directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A launcher with its options."""

    launcher: Launcher[Any]
    options: Any
    notices: tuple[str, ...] = ()
    """What in them is deprecated."""

    def table(self) -> dict[str, object]:
        """The options as they are kept."""
        return to_table(self.options)


def choose(registry: Registry, name: str, given: Sequence[str] = (), file: Path | None = None) -> Chosen:
    """The launcher of a name with its options, of a file and as `KEY=VALUE`. Raises `PluginError`, `RecipeError` and,
    where the file has options of it and is not known on this machine, `fitune.plugin.trust.UnknownCode`.
    """
    one = registry.provider(Launcher, name)
    plugin, names = registry.plugins[one.plugin], (name, one.record.name, *(mark.name for mark in one.record.formerly))
    source = _source(file, registry, names)
    where, values = ("--option", {}) if source is None else (str(source.path), source.values)
    told = [f"--on {name}: {notice.sentence()}" for notice in age_of(one, plugin, name)]
    at = next((other for other in names if other in values), name)
    if at != name:
        told += [f"{where}: [{at}]: {notice.sentence()}" for notice in age_of(one, plugin, at)]
    chosen = _chosen(one, plugin.release, {**values.get(at, {}), **dict(map(_pair, given))}, where)
    return replace(chosen, notices=(*told, *chosen.notices))


def again(registry: Registry, name: str, table: Mapping[str, Any]) -> Chosen:
    """The same as it was kept. Raises `PluginError` and `RecipeError`."""
    one = registry.provider(Launcher, name, ever=True)
    return _chosen(one, registry.plugins[one.plugin].release, table, "launch.json", of_run=True)


def _chosen(
    provider: Provided, release: Release, table: Mapping[str, Any], where: str, *, of_run: bool = False
) -> Chosen:
    launcher = cast("Launcher[Any]", provider.record)
    read = aged(launcher.options, table, release, of_run=of_run)
    options, problems = parse(launcher.options, read.table)
    found = [*read.problems, *problems, *(launcher.check(options) if options is not None else ())]
    found_secrets = [
        f"{where}: {launcher.name}.{key} holds {what}. It would be kept: take it out" for key, what in secrets_in(table)
    ]
    if found or found_secrets or options is None:
        raise RecipeError([*found_secrets, *(f"{where}: {launcher.name}.{one.key}: {one.sentence()}" for one in found)])
    notices = tuple(f"{where}: {launcher.name}.{one.key}: {one.sentence()}" for one in read.notices)
    options = moved(options, lambda path: path.expanduser().absolute())
    return Chosen(launcher=launcher, options=options, notices=notices)


def _source(file: Path | None, registry: Registry, wanted: Sequence[str]) -> TomlSource | None:
    place = FILE if file is None else file
    if file is None and not place.is_file():
        return None
    try:
        content = read_file(place, LARGEST)
        source = TomlSource(place, content.decode())
    except (OSError, ValueError) as error:
        raise RunError(
            f"{place} cannot be read: {error}. Give --settings a file of tables, one for each launcher"
        ) from None
    known = registry.names(Launcher)
    for name, table in source.values.items():
        if name not in known and name not in wanted:
            raise PluginError(f'{place}: no launcher "{name}". {nearest(name, known)}')
        if not isinstance(table, dict):
            raise RecipeError([f"{place}: {name} is no table. Write [{name}], and its options below"])
    if any(source.values.get(name) for name in wanted):
        registry.trust.must_know(place, content, FOLLOWED)
    return source


def _pair(text: str) -> tuple[str, object]:
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise RecipeError([f'--option {text}: write it as KEY=VALUE, e.g. --option root="/data/jobs"'])
    try:
        return key.strip(), tomli.loads(f"value = {value}")["value"]
    except tomli.TOMLDecodeError:  # a word without quotes
        return key.strip(), value.strip()
