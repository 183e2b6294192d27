"""What a run is, so that one that goes on is the same run: its recipe as it was asked for, its data, its base model.

It is kept in the run's directory as one file, `identity.json`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fitune.errors import RunError
from fitune.plugin.options import flat, toml_text
from fitune.plugin.reading import read_json
from fitune.recipe.renamed import translated
from fitune.runs.atomic import write_file
from fitune.runs.base import base_text
from fitune.runs.layout import IDENTITY
from fitune.runs.used_plugins import are_kept

FREE = (
    "name",
    "checkpoint",
    "listener",
    "data.cache",
    "eval.examples",
    "memory.recoveries",
    "memory.rehearse",
    "train.non_finite",
)
"""Keys that change nothing of what a run computes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Plain values, as they are kept."""

    recipe: Mapping[str, Any]
    """As it was asked for, every choice explicit but those that `[memory] fit` makes."""
    data: str
    """A digest of the rows that are trained on."""
    held_out: str | None
    model: str
    """A digest of a sample of the weights that do not train."""
    rows_of_step: int
    """Over all micro-batches and processes: with another number, a count of steps is another place in the data."""
    processes: int
    versions: Mapping[str, str | None]
    base: str | None = None
    """The commit or a digest of the base model, as its loader tells it; None where it does not, and in older runs."""
    start: str | None = None
    """A digest of the adapter that it goes on from (`[adapter] from`); None where its own is new, and in older runs."""
    place: str | None = None
    """The run's directory as it last began: paths of the recipe are relative to it, where they can be. None in older
    runs."""
    plugins: Mapping[str, Mapping[str, str | None]] | None = None
    """Which plugins it uses (`fitune.runs.used_plugins`); None in older runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What is not as it was."""

    key: str
    """As `--allow-changed` takes it."""
    before: str
    now: str

    def __str__(self) -> str:
        return f"{self.key}: {self.before} before, {self.now} now"


def read_identity(run: Path) -> Identity | None:
    """That of a run's directory; None where it has not begun to train. Raises `RunError` if it cannot be read."""
    try:
        values = read_json(run / IDENTITY)
        said = values.pop("sha256", None)
        identity = Identity(**values)
        _must_be_sound(identity)
        if said != _digest_of(values) and (said is not None or identity.place is not None):  # 0.1 wrote neither
            raise ValueError("it is not what was written (its SHA-256 differs)")
        return replace(identity, recipe=translated(identity.recipe))  # it may be of 0.1
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"{run / IDENTITY} cannot be read: {error}. Start the run anew, with another --out") from error


def _must_be_sound(identity: Identity) -> None:
    """Raise `TypeError` where a value is not of its type."""
    types: dict[str, type | tuple[type, ...]] = {
        "recipe": dict,
        "data": str,
        "held_out": (str, type(None)),
        "model": str,
        "rows_of_step": int,
        "processes": int,
        "versions": dict,
        "base": (str, type(None)),
        "start": (str, type(None)),
        "place": (str, type(None)),
        "plugins": (dict, type(None)),
    }
    for name, kind in types.items():
        if not isinstance(getattr(identity, name), kind):
            raise TypeError(f"{name} is of type {type(getattr(identity, name)).__name__}")
    if identity.plugins is not None and not are_kept(identity.plugins):
        raise TypeError("plugins holds no tables of text")


def write_identity(run: Path, identity: Identity) -> None:
    """Keep it. Raises `OSError`."""
    values = asdict(identity)
    write_file(run / IDENTITY, json.dumps({**values, "sha256": _digest_of(values)}, indent=1) + "\n")


def _digest_of(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def recipe_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Keys of a recipe that differ, those left out that change nothing of what a run computes."""
    one, other = ({key: value for key, value in flat(recipe) if value != []} for recipe in (before, now))
    keys = [*one, *(key for key in other if key not in one)]
    found = []
    for key in keys:
        missing = object()
        if one.get(key, missing) != other.get(key, missing) and not _is_under(key, FREE):
            found.append(Difference(key=key, before=_shown(one, key), now=_shown(other, key)))
    return found


def content_differences(before: Identity, now: Identity) -> list[Difference]:
    """What differs of the data and the model."""
    found = []
    for key, one, other in (
        ("data", before.data, now.data),
        ("eval", before.held_out or "none", now.held_out or "none"),
    ):
        if one != other:
            what = {"data": "rows", "eval": "held-out rows"}[key]
            found.append(Difference(key=key, before=f"{what} {one[:8]}", now=f"{what} {other[:8]}"))
    of_model = [("weights", before.model[:8], now.model[:8])] if before.model != now.model else []
    if before.base is not None and before.base != now.base:
        of_model.append(("base", base_text(before.base), base_text(now.base)))
    if of_model:
        one, other = (", ".join(f"{what} {pair[at]}" for what, *pair in of_model) for at in (0, 1))
        found.append(Difference(key="model", before=one, now=other))
    if before.start != now.start:
        one, other = (f"weights {start[:8]}" if start else "a new one" for start in (before.start, now.start))
        found.append(Difference(key="adapter.from", before=one, now=other))
    return found


def must_be_allowed(run: Path, differences: Sequence[Difference], allowed: Sequence[str]) -> None:
    """Raise `RunError`, with a line for each difference that was not allowed."""
    refused = [one for one in differences if not _is_under(one.key, allowed)]
    if refused:
        flags = " ".join(f"--allow-changed {key}" for key in dict.fromkeys(one.key for one in refused))
        error = RunError(f"{run} is another run: {'; '.join(map(str, refused))}. If that is meant: {flags}")
        error.lines = (
            f"{run} cannot go on: it would not be the same run",
            *(f"{run}: {one}" for one in refused),
            f"If that is meant, add: {flags}",
        )
        raise error


def must_keep_place(run: Path, before: Identity, now: Identity) -> None:
    """Raise `RunError` if a step takes another number of rows, so that its place in the data cannot be kept."""
    if before.rows_of_step != now.rows_of_step:
        raise RunError(
            f"{run} cannot go on: a step took {before.rows_of_step} rows, and now takes {now.rows_of_step}, so that "
            "its place in the data would be lost. Keep micro_batch x accumulation x processes as it was: "
            f"{before.rows_of_step} in {before.processes} process(es) before, {now.rows_of_step} in {now.processes} now"
        )


def _is_under(key: str, tables: Sequence[str]) -> bool:
    return any(key == table or key.startswith(f"{table}.") for table in tables)


def _shown(flat: Mapping[str, Any], key: str) -> str:
    return toml_text(flat[key]) if key in flat else "nothing"
