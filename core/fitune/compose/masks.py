"""What the host knows of a batch is not asked of the device.

transformers looks at the positions of a batch without a mask for documents that begin anew, and waits for the GPU's
answer, once a forward pass: the launches of a whole micro-batch come to a halt behind it, and no CUDA graph can hold
it. Whether rows hold several documents is known here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import transformers.masking_utils as masks

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fitune.plugin.dataflow import Batch
    from fitune.plugin.strategy import Loss

NAME = "find_packed_sequence_indices"
"""Of transformers' function, which takes positions `[B, S]` and gives the number of each token's document, or None."""


def unasked(loss: Loss) -> Loss:
    """The loss, without that question where a batch's rows are a document each."""

    def compute(model: nn.Module, batch: Batch) -> Tensor:
        if batch.positions is not None or not hasattr(masks, NAME):
            return loss(model, batch)
        with _answered():
            return loss(model, batch)

    return compute


@contextlib.contextmanager
def _answered() -> Iterator[None]:
    before = getattr(masks, NAME)
    setattr(masks, NAME, _one_document)
    try:
        yield
    finally:
        setattr(masks, NAME, before)


def _one_document(position_ids: Tensor) -> None:
    """No row holds several."""
