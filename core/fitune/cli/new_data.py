"""What `ft new` sees of data: how long rows are, and how they are read."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import tomli

from fitune.errors import DataError, RecipeError
from fitune.plugin.dataflow import DataContext, Row
from fitune.plugin.records import DataStage

if TYPE_CHECKING:
    from fitune.plugin.recipe import Recipe
    from fitune.plugin.registry import Registry

LOOKED_AT = 1000
"""Rows that are read, at most."""

CHARACTERS = 3.5
"""Of a token, in texts of most languages and programs: an estimate, which `ft data` replaces by numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was seen of the first rows."""

    rows: int
    """How many were read; up to `LOOKED_AT`."""
    tokens: int
    """Of the longest but for one of a hundred, about."""
    stages: tuple[dict[str, Any], ...]
    """Tables of the stages that read them, behind which "chat" may come."""
    plain: bool
    """Whether they are whole texts."""
    objective: str
    """What such rows are for."""


def look(recipe: Recipe, registry: Registry, wanted: str | None) -> Seen:
    """Read the first rows of a recipe's first source. Raises `DataError` for rows that cannot be read."""
    use = recipe.sources[0]
    context = DataContext(tokenizer=cast(Any, None), length=1 << 20, seed=0)
    found = use.record.make(use.options, context)(iter(()))
    rows = list(itertools.islice(cast(Iterator[Row], found), LOOKED_AT))
    if not rows:
        raise DataError(f"{_place(use.options)}: no rows. Give data that hold some")
    sizes = sorted(sum(map(_characters, row.values.values())) for row in rows)
    tokens = int(sizes[min(len(sizes) - 1, len(sizes) * 99 // 100)] / CHARACTERS)
    columns = rows[0].values
    objective = wanted or _objective(columns)
    stages, plain = ((), False) if objective != "sft" else _format(rows[:3], registry, context)
    return Seen(rows=len(rows), tokens=tokens, stages=stages, plain=plain, objective=objective)


def _place(options: Any) -> str:
    return str(getattr(options, "path", None) or getattr(options, "id", "the data"))


def _characters(value: object) -> int:
    """Of all texts in a value."""
    if isinstance(value, str):
        return len(value)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return sum(map(_characters, inner))


def _objective(columns: Any) -> str:
    """What rows of these columns are for."""
    if "chosen" in columns and "rejected" in columns:
        return "dpo"
    return "kto" if {"prompt", "completion"} <= set(columns) and isinstance(columns.get("label"), bool) else "sft"


def _format(rows: Sequence[Row], registry: Registry, context: DataContext) -> tuple[tuple[dict[str, Any], ...], bool]:
    """The stages that read such rows, and whether they are whole texts: what columns tell, or what the stage that asks
    them proposes itself. Raises `DataError` where neither helps.
    """
    try:
        _read(rows, "detect", {}, registry, context)
    except DataError as error:
        if (proposed := _proposed(error.message)) is not None:
            options = {key: value for key, value in proposed.items() if key != "use"}
            _read(rows, str(proposed["use"]), options, registry, context)
            return (proposed,), False
        if "text" in rows[0].values:
            return ({"use": "plain-text"},), True
        raise
    return (), False


def _read(rows: Sequence[Row], name: str, values: dict[str, Any], registry: Registry, context: DataContext) -> None:
    from fitune.plugin.options import parse

    record = registry.find(DataStage, name)
    options, problems = parse(record.options, values)
    if options is None:
        raise RecipeError([problem.sentence() for problem in problems])
    for _ in record.make(options, context)(iter(rows)):
        pass


def _proposed(message: str) -> dict[str, Any] | None:
    """The stage that an error proposes: `[[data.stage]] use = "...", key = "..."` at its end."""
    found = re.search(r'\[\[data\.stage\]\] (use = "[^"]+"(?:, \w+ = "[^"]*")+)$', message)
    if found is None:
        return None
    return cast("dict[str, Any]", tomli.loads(f"stage = {{ {found[1]} }}")["stage"])


def source_of(name: str) -> dict[str, Any]:
    """The table of `[[data.source]]` for a file, a directory, or a data set of the hub. Raises `DataError`."""
    from fitune.recipe.foreign.to_sources import rows_at

    rows = rows_at(name, Path())
    if rows is None:
        raise DataError(f"--data {name}: neither a file nor a name on the hub. Fetch it, and give its path")
    path = rows.table.get("path")
    if (
        path is not None
        and not Path(path).exists()
        and not any(Path().glob(path) if not Path(path).is_absolute() else ())
    ):
        raise DataError(f"--data {name}: no such file. Give a file, a directory, or a data set's name on the hub")
    return rows.table
