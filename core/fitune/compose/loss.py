"""The plain losses, over the full logits tensor. Shapes: B rows, S tokens, V vocabulary."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fitune.plugin.dataflow import IGNORED, Batch


def plain_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Sum of the cross-entropy over a batch's target tokens, a float32 scalar.

    The sum, not the mean: the loop divides by the number of target tokens of the whole step, so that a step's
    gradient does not depend on how its tokens are spread over micro-batches and processes.
    """
    logits_BSV = model(**batch.inputs()).logits
    return F.cross_entropy(
        logits_BSV[:, :-1].float().flatten(0, 1),
        batch.labels[:, 1:].flatten(),
        ignore_index=IGNORED,
        reduction="sum",
    )


def plain_log_probs(model: nn.Module, batch: Batch) -> Tensor:
    """The log-probability of each target token, given all before it: `[B, S]`, float32, 0 for all other tokens."""
    logits_BSV = model(**batch.inputs()).logits
    losses = F.cross_entropy(
        logits_BSV[:, :-1].float().flatten(0, 1),
        batch.labels[:, 1:].flatten(),
        ignore_index=IGNORED,
        reduction="none",
    )
    return F.pad(-losses.view(len(batch.labels), -1), (1, 0))
