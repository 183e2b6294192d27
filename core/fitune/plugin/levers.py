"""A lever: a change to a recipe that may save memory, for a forecast to try. Plugins offer them by `ft_levers`."""

from __future__ import annotations

from dataclasses import dataclass

from fitune.plugin.options import toml_text

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
