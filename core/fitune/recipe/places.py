"""New places of what a recipe names: a model or data that are not where they were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fitune.errors import RunError


def model_place(model: Path | None) -> dict[str, Path]:
    """The key that names the base, with its new place; none without one."""
    return {} if model is None else {"model.path": model}


def data_places(values: Mapping[str, Any], files: Sequence[Path]) -> dict[str, Path]:
    """The keys that name a recipe's data, with these new places, in the order in which it names its own: those to train
    on, and then those that are held out, which may be left where they are. Raises `RunError` for another number.
    """
    if not files:
        return {}
    trained = list(_keys(values, "data"))
    if isinstance(data := values.get("data"), Mapping) and data.get("path") is not None:  # in place of all sources
        trained = ["data.path"]
    held_out = list(_keys(values, "eval"))
    keys = [*trained, *held_out]
    if not trained or len(files) not in (len(trained), len(keys)):
        named = ", ".join(keys) or "no file"
        raise RunError(
            f"--data is given {len(files)} times, and the recipe names {len(trained)} file(s) to train on and "
            f"{len(held_out)} held out: {named}. Give one for each of the first, or for each of all, in this order"
        )
    return dict(zip(keys, files, strict=False))


def _keys(values: Mapping[str, Any], table: str) -> Iterator[str]:
    """Keys of the sources that name a path."""
    found = values.get(table)
    sources = found.get("source") if isinstance(found, Mapping) else None
    for number, source in enumerate(sources if isinstance(sources, list) else ()):
        if isinstance(source, Mapping) and source.get("path") is not None:
            yield f"{table}.source.{number}.path"
