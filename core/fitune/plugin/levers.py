"""A lever: a change to a recipe that may save memory, for a forecast to try. Plugins offer them by `ft_levers`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fitune.plugin.options import toml_text

if TYPE_CHECKING:
    from fitune.plugin.recipe import Recipe

Change = tuple[str, object]
"""A dotted key of the recipe, as `--set` takes it, and its new value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lever:
    """A change to a recipe, and what it means for the result; what it saves is traced, never claimed."""

    name: str
    """In a few words, e.g. "chunked-loss" or "rank 8 to 4"."""
    changes: tuple[Change, ...]
    exact: bool | None = None
    """Whether the run learns the same but for rounding; None where nobody has said."""
    remark: str = ""
    """What a user should know before taking it, e.g. what else it changes; without a full stop."""

    @property
    def overrides(self) -> tuple[str, ...]:
        """The changes as `--set` takes them."""
        return tuple(f"{key}={toml_text(value)}" for key, value in self.changes)


def with_strategy(recipe: Recipe, name: str, **options: object) -> Change:
    """The recipe's memory strategies with this one: its options changed where it stands, or put last."""
    tables = [use.table() for use in recipe.strategies]
    for table in tables:
        if table["use"] == name:
            table.update(options)
            break
    else:
        tables.append({"use": name, **options})
    return "memory.strategy", tables


def halved(recipe: Recipe, name: str, option: str, what: str) -> Iterator[Lever]:
    """Half of a memory strategy's option, a number of tokens, if the recipe uses the strategy; `what` they make up."""
    number = (strategy_options(recipe, name) or {}).get(option)
    if isinstance(number, int) and number > 1:
        change = with_strategy(recipe, name, **{option: number // 2})
        yield Lever(name=f"{name}, {what} of {number} to {number // 2} tokens", changes=(change,), exact=True)


def without_strategy(recipe: Recipe, name: str) -> Change:
    """The recipe's memory strategies without this one."""
    return "memory.strategy", [use.table() for use in recipe.strategies if use.record.name != name]


def strategy_options(recipe: Recipe, name: str) -> Mapping[str, object] | None:
    """The options of a memory strategy of the recipe; None if it is not used."""
    found = [use.table() for use in recipe.strategies if use.record.name == name]
    return found[0] if found else None
