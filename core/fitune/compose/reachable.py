"""Whether a model may give a held-out answer whole, or is cut short by a setting: then it cannot match exactly."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fitune.plugin.dataflow import IGNORED, Example


def cut_by(
    example: Example, expected: NDArray[np.signedinteger[Any]], stops: Collection[int], most: int, length: int | None
) -> Literal["", "max_new_tokens", "length"]:
    """The setting that the answer to a row is cut by: it is longer than the `most` tokens that are generated, or was
    itself cut where the row was, at `length`; "" for none.
    """
    ended = int(expected[-1]) in stops
    if len(expected) - ended > most:
        return "max_new_tokens"
    if len(example.input_ids) == length and example.labels[-1] != IGNORED and not ended:
        return "length"
    return ""
