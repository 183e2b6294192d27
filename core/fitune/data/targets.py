"""Which examples a run can train on.

Those without a token to train on are left out, and counted by the rows that they were made of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from fitune.errors import DataError
from fitune.plugin.dataflow import DataContext, Example

EMPTY = "rows left out: no token to train on"
"""The note of rows without a target token."""

EMPTY_PIECES = "pieces of rows left out: no token to train on"
"""The note of pieces without one, of rows that were split and have one in another piece."""


class Taken(Iterator[Any]):
    """A stream, and how much of it was taken by now."""

    def __init__(self, stream: Iterator[Any]) -> None:
        self.stream = stream
        self.number = 0

    def __next__(self) -> Any:
        """Take one more."""
        item = next(self.stream)
        self.number += 1
        return item


def with_targets(examples: Iterator[Example], taken: Taken, notes: Counter[str]) -> Iterator[Example]:
    """The examples with a target token; `taken` is what their stage takes, one of which it may split into several."""
    for _, pieces in groupby(examples, lambda piece: (taken.number, piece.origin)):
        empty, whole = 0, True
        for piece in pieces:
            if piece.targets:
                whole = False
                yield piece
            else:
                empty += 1
        if whole:
            notes[EMPTY] += 1
        elif empty:
            notes[EMPTY_PIECES] += empty


def must_fit(example: Example, context: DataContext) -> None:
    """Raise `DataError` for an example that is too long, or not of the kind that the run's objective takes."""
    if len(example.input_ids) > context.length:
        raise DataError(
            f"{example.origin}: {len(example.input_ids)} tokens, over [train] length = {context.length}. "
            "Put the [[data.stage]] that cuts rows behind those that lengthen them"
        )
    compared = "role" in example.extras
    if compared and context.takes == "documents":
        raise DataError(f"{example.origin}: answers that are compared, but the objective learns from documents")
    if not compared and context.takes != "documents":
        raise DataError(
            f"{example.origin}: a document, but the objective compares answers. Use the [[data.stage]]s "
            '"preferences" and "chat" in place of those that make documents'
        )
