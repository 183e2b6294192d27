"""What a fit has found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fitune.plugin.recipe import Recipe

if TYPE_CHECKING:
    from fitune.memory.cards.cards import Card
    from fitune.memory.forecast import Forecast


@dataclass(frozen=True, slots=True, kw_only=True)
class Considered:
    """A composition that the search has looked at."""

    tables: tuple[Mapping[str, object], ...]
    """The memory strategies of the recipe, as tables."""
    micro_batch: int
    accumulation: int
    seconds: float
    """Of an optimizer step, by the time model."""
    allocated: int
    """Bytes, at most."""
    reserved: int
    """Bytes, at most."""
    margin: int
    """Bytes that the forecast may be wrong by."""
    fits: bool
    confirmed: bool
    """By a trace in full depth; else estimated from models of a few layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """The composition that was chosen, and what else was looked at."""

    recipe: Recipe
    """Every choice explicit, nothing left to be chosen."""
    forecast: Forecast
    chosen: Considered
    others: tuple[Considered, ...]
    """Fastest first."""
    card: Card
    notes: tuple[str, ...] = ()
    """What the user should know of the choice."""
