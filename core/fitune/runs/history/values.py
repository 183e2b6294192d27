"""A recipe's values as a run's directory keeps them: the main ones in words, and all of them by dotted keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fitune.plugin.options import flat, toml_text

Values = Mapping[str, Any]


def choices(recipe: Values) -> Iterator[tuple[str, str]]:
    """The main choices: (what, which). A table that is missing, or is none, has no line."""
    for table in ("model", "adapter"):
        if isinstance(found := recipe.get(table), Mapping):
            yield table, _use(found)
    objective = recipe.get("objective")
    if isinstance(objective, Mapping) and objective.get("use") != "sft":
        yield "objective", _use(objective)
    memory, data = _table(recipe, "memory"), _table(recipe, "data")
    if memory:
        yield "strategies", ", ".join(map(_use, _tables(memory, "strategy"))) or "no strategy"
    if data:
        sources = [{**one, "weight": one.get("weight")} for one in _tables(data, "source")]
        yield "data", ", ".join(map(_use, sources))
        yield "stages", ", ".join(str(one.get("use")) for one in _tables(data, "stage"))
    train = _table(recipe, "train")
    named = ("epochs", "steps", "micro_batch", "length", "learning_rate", "schedule")
    if train:
        yield "train", ", ".join(f"{key} {_plain(train[key])}" for key in named if train.get(key) is not None)


def differing(tables: Sequence[Values]) -> list[tuple[str, tuple[Any, ...]]]:
    """Dotted keys whose values are not the same in all of some nested tables: (key, its value in each); None where it
    is not there.
    """
    each = [dict(flat(table)) for table in tables]
    keys = dict.fromkeys(key for one in each for key in one)
    found = [(key, tuple(one.get(key) for one in each)) for key in keys]
    return [(key, values) for key, values in found if any(value != values[0] for value in values)]


def value_text(value: Any) -> str:
    """A value as TOML writes it; a dash for none."""
    return "-" if value is None else toml_text(value)


def _use(table: Values) -> str:
    """A table that a plugin serves: the plugin, and its options in brackets."""
    options = [f"{key} {_plain(value)}" for key, value in table.items() if key != "use" and value not in (None, [], "")]
    return f"{table.get('use')} ({', '.join(options)})" if options else str(table.get("use"))


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return value if isinstance(value, str) else toml_text(value)


def _table(values: Values, name: str) -> Values:
    found = values.get(name)
    return found if isinstance(found, Mapping) else {}


def _tables(values: Values, name: str) -> list[Values]:
    found = values.get(name)
    return [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []
