"""Keys of recipes that are called otherwise since 0.1: what to write now, and how recipes of older runs read now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fitune.errors import Problem
from fitune.plugin.options import toml_text
from fitune.plugin.reading import read_json

Table = dict[str, Any]

LISTENERS: dict[tuple[str, str], tuple[str, str]] = {
    ("log", "every"): ("metrics", "every"),
    ("log", "tracker"): ("tracker", "name"),
    ("checkpoint", "spot"): ("spot-notice", "cloud"),
}
"""Keys that are options of a listener now: (its name, the option's)."""

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


def what_to_write(key: tuple[str, str], table: Table, *, overridden: bool) -> Problem:
    """What to write for a key that is called otherwise now; `overridden` if it was given by `--set`."""
    what = f'"{key[1]}" of [{key[0]}] is an option of the listener "{table["use"]}" now'
    lines = [f"{name} = {toml_text(value)}" for name, value in table.items()]
    if overridden:
        return Problem(what=what, fix=f"Give in its place: --set 'listener=[{{{', '.join(lines)}}}]'")
    return Problem(what=what, fix=f"Remove it, and add these lines at the end: [[listener]] | {' | '.join(lines)}")


def without_renamed(values: Mapping[str, Any]) -> Table:
    """A recipe's values without the keys that are called otherwise now, and without the table that is gone."""
    kept = {name: value for name, value in values.items() if name != GONE or not isinstance(value, Mapping)}
    for (table, key), _ in renamed(kept):
        kept[table] = {name: value for name, value in kept[table].items() if name != key}
    return kept


def translated(values: Mapping[str, Any]) -> Table:
    """The values of a recipe that a run of 0.1 wrote, as they are written now."""
    tables = [table for _, table in renamed(values)]
    kept = {"objective": {"use": "sft"}, **without_renamed(values)}  # 0.1 knew no other
    if isinstance(held_out := kept.get("eval"), Mapping) and "fraction" in held_out:
        kept["eval"] = {"split": "by_row", **held_out}  # nor another rule than this
    kept["memory"] = _as_named(kept.get("memory", {}))
    return {**kept, "listener": [*kept.get("listener", []), *tables]} if tables else kept


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
