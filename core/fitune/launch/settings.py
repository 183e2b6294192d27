"""A launcher's options: from `launch.toml`, a table for each launcher, and `--option` over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli

from fitune.errors import PluginError, RecipeError, RunError, nearest
from fitune.launch.bundle import moved
from fitune.plugin.launching import Launcher
from fitune.plugin.options import parse, to_table
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

    def table(self) -> dict[str, object]:
        """The options as they are kept."""
        return to_table(self.options)


def choose(registry: Registry, name: str, given: Sequence[str] = (), file: Path | None = None) -> Chosen:
    """The launcher of a name with its options, of a file and as `KEY=VALUE`. Raises `PluginError`, `RecipeError` and,
    where the file has options of it and is not known on this machine, `fitune.plugin.trust.UnknownCode`.
    """
    launcher: Launcher[Any] = registry.find(Launcher, name)
    source = _source(file, registry, name)
    table = dict(source.values.get(name, {})) if source is not None else {}
    return _chosen(launcher, {**table, **dict(map(_pair, given))}, "--option" if source is None else str(source.path))


def again(registry: Registry, name: str, table: Mapping[str, Any]) -> Chosen:
    """The same as it was kept. Raises `PluginError` and `RecipeError`."""
    return _chosen(registry.find(Launcher, name), table, "launch.json")


def _chosen(launcher: Launcher[Any], table: Mapping[str, Any], where: str) -> Chosen:
    options, problems = parse(launcher.options, table)
    found = [*problems, *(launcher.check(options) if options is not None else ())]
    found_secrets = [
        f"{where}: {launcher.name}.{key} holds {what}. It would be kept: take it out" for key, what in secrets_in(table)
    ]
    if found or found_secrets or options is None:
        raise RecipeError([*found_secrets, *(f"{where}: {launcher.name}.{one.key}: {one.sentence()}" for one in found)])
    return Chosen(launcher=launcher, options=moved(options, lambda path: path.expanduser().absolute()))


def _source(file: Path | None, registry: Registry, wanted: str) -> TomlSource | None:
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
        if name not in known:
            raise PluginError(f'{place}: no launcher "{name}". {nearest(name, known)}')
        if not isinstance(table, dict):
            raise RecipeError([f"{place}: {name} is no table. Write [{name}], and its options below"])
    if source.values.get(wanted):
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
