"""Prepared rows that were never text, and a key to keep them by."""

from __future__ import annotations

import numpy as np

from fitune import Example, Origin

KEY = "0" * 32


def example(number: int, tokens: int = 3) -> Example:
    """A row of this number, so many times."""
    ids = np.full(tokens, number, dtype=np.int32)
    return Example(input_ids=ids, labels=ids.copy(), origin=Origin(file="f", row=number + 1))


def plain(example: Example) -> object:
    """What two that are equal have in common."""
    return example.input_ids.tolist(), example.labels.tolist(), example.lengths, example.extras, example.origin
