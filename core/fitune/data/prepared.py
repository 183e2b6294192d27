"""Data that are ready to be batched, and what was counted as they were made."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from fitune.data.cache import Rows
from fitune.data.split import Share


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Data that are ready to be batched."""

    rows: Rows
    cached: bool
    """Whether they were prepared before, by an equal recipe on equal data."""
    lasting: bool
    """Whether they are kept for the next start."""

    @property
    def flow(self) -> list[tuple[str, int]]:
        """What each stage gave: (name, how many)."""
        return [(str(name), int(number)) for name, number in self.rows.meta["flow"]]

    @property
    def notes(self) -> list[tuple[str, int]]:
        """What the stages counted, e.g. rows cut: (what, how many)."""
        return [(str(what), int(number)) for what, number in self.rows.meta["notes"]]

    @property
    def shares(self) -> list[Share]:
        """What was held out of each source, where `[eval] fraction` says how much; none where `split` is "by_row"."""
        return [Share(**share) for share in self.rows.meta["shares"]]

    @property
    def tokens(self) -> int:
        """Tokens in all rows."""
        return int(self.rows.meta["tokens"])

    @property
    def digest(self) -> str:
        """Of the content of all rows."""
        return str(self.rows.meta["digest"])

    @property
    def highest(self) -> int:
        """The highest token id in the rows."""
        return int(self.rows.meta["highest"])

    @property
    def longest(self) -> int:
        """Tokens of the longest document in the rows."""
        return int(self.rows.meta["longest"])

    @property
    def lengths(self) -> Counter[int]:
        """Tokens of documents before any was cut or packed: how many there are of each length."""
        return Counter({int(length): int(number) for length, number in self.rows.meta["lengths"]})
