"""Keys of 0.1 that are listeners now: how they read until they are gone, and how recipes of older runs do for ever."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fitune.errors import Problem
from fitune.plugin.deprecation import Deprecation, this_release
from fitune.plugin.options import toml_text
from fitune.plugin.reading import read_json

Table = dict[str, Any]

Key = tuple[str | int, ...]

LISTENERS: dict[tuple[str, str], tuple[str, str]] = {
    ("log", "every"): ("metrics", "every"),
    ("log", "tracker"): ("tracker", "name"),
    ("checkpoint", "spot"): ("spot-notice", "cloud"),
}
"""Keys that are options of a listener now: (its name, the option's)."""

SINCE, REMOVED_IN = "0.2", "0.4"
"""The releases that first had these listeners, and in which the keys are gone."""

GONE = "log"
"""A table of which nothing is left."""


def renamed(values: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], Table]]:
    """The keys in a recipe's values that are called otherwise now, each with the listener's table that replaces it."""
    for (table, key), (listener, option) in LISTENERS.items():
        found = values.get(table)
        if isinstance(found, Mapping) and key in found:
            made = {"use": listener, option: found[key]}
            if listener == "tracker" and "every" in found:  # it was for both
                made["every"] = found["every"]
            yield (table, key), made


def unknown(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The other keys of the table that is gone."""
    found = values.get(GONE)
    for key in found if isinstance(found, Mapping) else ():
        if (GONE, key) not in LISTENERS:
            yield GONE, key


def mark_of(table: Table, *, overridden: bool) -> Deprecation:
    """What is to be said of a key that is called otherwise now; `overridden` if it was given by `--set`."""
    lines = [f"{name} = {toml_text(value)}" for name, value in table.items()]
    now = f'It is an option of the listener "{table["use"]}" now'
    if overridden:
        instead = f"{now}: give in its place --set 'listener=[{{{', '.join(lines)}}}]'"
    else:
        instead = f"{now}: remove it, and add these lines at the end: [[listener]] | {' | '.join(lines)}"
    return Deprecation(since=SINCE, removed_in=REMOVED_IN, instead=instead)


def are_gone() -> bool:
    """Whether this release is one without these keys."""
    return Deprecation(since=SINCE, removed_in=REMOVED_IN, instead="-").is_gone(this_release())


def problem_of(key: tuple[str, str], mark: Deprecation) -> Problem:
    """The notice, or the problem, of a key."""
    return mark.told(f'"{key[1]}" of [{key[0]}]', this_release())


def without_renamed(values: Mapping[str, Any]) -> Table:
    """A recipe's values without the keys that are called otherwise now, and without the table that is gone."""
    kept = {name: value for name, value in values.items() if name != GONE or not isinstance(value, Mapping)}
    for (table, key), _ in renamed(kept):
        kept[table] = {name: value for name, value in kept[table].items() if name != key}
    return kept


def as_listeners(values: Mapping[str, Any]) -> tuple[Table, dict[Key, Key]]:
    """A recipe's values with these keys as the listeners that they are now; and the keys of these, each with the one
    that gave it.
    """
    kept, tables = without_renamed(values), list(renamed(values))
    named = kept.get("listener", [])
    if not tables or not isinstance(named, list):  # which is told where listeners are read
        return kept, {}
    moved: dict[Key, Key] = {}
    for number, (key, table) in enumerate(tables, len(named)):
        moved["listener", number] = key[:1]
        moved["listener", number, LISTENERS[key][1]] = key
        named = [*named, table]
    return {**kept, "listener": named}, moved


def translated(values: Mapping[str, Any]) -> Table:
    """The values of a recipe that a run of 0.1 wrote, as they are written now."""
    kept = {"objective": {"use": "sft"}, **as_listeners(values)[0]}  # 0.1 knew no other
    if isinstance(held_out := kept.get("eval"), Mapping) and "fraction" in held_out:
        kept["eval"] = {"split": "by_row", **held_out}  # nor another rule than this
    kept["memory"] = _as_named(kept.get("memory", {}))
    return kept


def _as_named(memory: Any) -> Any:
    """The table `[memory]` of a run: to one of before `fast` nothing was added that it does not name, but by `fit`."""
    if not isinstance(memory, Mapping) or memory.get("fit"):
        return memory
    return {"fast": False, **memory}


def is_of_run(path: Path) -> bool:
    """Whether a file lies in a run's directory, which an older version may have written."""
    return path.with_name("identity.json").is_file()


def place_of_run(path: Path) -> Path | None:
    """The directory that a run was in when it last began, by the file beside its recipe; None where it does not say."""
    try:
        found = read_json(path.with_name("identity.json"))["place"]
        return Path(found) if isinstance(found, str) and Path(found).is_absolute() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
