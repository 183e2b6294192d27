"""Whether a model may give a held-out answer whole, or is cut short by a setting: then it cannot match exactly."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fitune.plugin.dataflow import IGNORED, Example


def cut_by(
    example: Example,
    expected: NDArray[np.signedinteger[Any]],
    stops: Collection[int],
    most: int,
    length: int | None,
    *,
    by_text: bool = False,
) -> Literal["", "max_new_tokens", "length"]:
    """The setting that the answer to a row is cut by: it is longer than the `most` tokens that are generated, or was
    itself cut where the row was, at `length`; "" for none. A token that ends it need not be generated, a text
    (`by_text`) must be.
    """
    by_token = int(expected[-1]) in stops
    ended = by_token or by_text
    if len(expected) - by_token > most:
        return "max_new_tokens"
    if len(example.input_ids) == length and example.labels[-1] != IGNORED and not ended:
        return "length"
    return ""
