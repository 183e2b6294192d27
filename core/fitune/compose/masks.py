"""What the host knows of a batch is not asked of the device.

transformers looks at the positions of a batch without a mask for documents that begin anew, and waits for the GPU's
answer, once a forward pass: the launches of a whole micro-batch come to a halt behind it, and no CUDA graph can hold
it. While one is captured it asks nothing, makes a mask of all tokens to be sure, and attention takes three times as
long. Whether rows hold several documents is known here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import transformers.masking_utils as masks

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fitune.plugin.dataflow import Batch
    from fitune.plugin.strategy import Loss

DOCUMENTS, TRACING = "find_packed_sequence_indices", "is_tracing"
"""transformers' functions: the one takes positions `[B, S]` and gives the number of each token's document, or None; the
other says whether values cannot be asked for, as in a graph that is captured."""


def unasked(loss: Loss) -> Loss:
    """The loss, without that question where a batch's rows are a document each."""

    def compute(model: nn.Module, batch: Batch) -> Tensor:
        if batch.positions is not None or not (hasattr(masks, DOCUMENTS) and hasattr(masks, TRACING)):
            return loss(model, batch)
        with _answered():
            return loss(model, batch)

    return compute


@contextlib.contextmanager
def _answered() -> Iterator[None]:
    before = {name: getattr(masks, name) for name in (DOCUMENTS, TRACING)}
    setattr(masks, DOCUMENTS, _one_document)
    setattr(masks, TRACING, _no)
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(masks, name, function)


def _one_document(position_ids: Tensor) -> None:
    """No row holds several."""


def _no(*tensors: Any) -> bool:
    """There is no value to ask for."""
    return False
