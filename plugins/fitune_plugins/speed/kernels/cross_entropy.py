"""Cross-entropy of logits, and their gradient in their place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fitune_plugins.speed.kernels.library import operation, wide

IGNORED = -100
"""Label of a row that counts for nothing, as in torch."""


def cross_entropy_(logits: Tensor, labels: Tensor, cap: float) -> Tensor:
    """Losses `[N]`, in float32, of `logits [N, V]` for `labels [N]`; `logits` become the gradient of the losses' sum.

    With `cap` above 0 logits are first capped, `cap * tanh(logit / cap)` (Gemma 2, arXiv 2408.00118), in float32. Rows
    whose label is -100 have no loss and no gradient; a label that is no column has an infinite loss. The label's own
    gradient, p - 1, is made of the other columns' sum, so that it keeps its digits where p is near 1.
    """
    return _cross_entropy(logits, labels, cap)  # type: ignore[no-any-return]


def _cross_entropy_cpu(logits: Tensor, labels: Tensor, cap: float) -> Tensor:
    x = wide(logits)
    slope = None
    if cap > 0:
        bent = torch.tanh(x / cap)
        x, slope = bent * cap, 1 - bent.square()
    here = torch.arange(x.shape[1], device=x.device) == labels[:, None]
    own = torch.where(here.any(1), x.masked_fill(~here, 0).sum(1), -torch.inf)
    others = x.masked_fill(here, -torch.inf)
    top = torch.maximum(others.amax(1), own)
    weights = torch.exp(others - top[:, None])
    rest, mine = weights.sum(1), torch.exp(own - top)
    losses = (top - own) + torch.where(mine == 1, torch.log1p(rest), torch.log(rest + mine))
    grad = (weights - rest[:, None] * here) / (rest + mine)[:, None]
    if slope is not None:
        grad = grad * slope
    counts = labels != IGNORED
    logits.copy_(grad.masked_fill(~counts[:, None], 0))
    return losses.masked_fill(~counts, 0).float()


def _cross_entropy_meta(logits: Tensor, *_: Any) -> Tensor:
    return logits.new_empty(len(logits), dtype=torch.float32)


_cross_entropy = operation(
    "cross_entropy_(Tensor(a!) logits, Tensor labels, float cap) -> Tensor",
    cpu=_cross_entropy_cpu,
    meta=_cross_entropy_meta,
    cuda="triton_cross_entropy.cross_entropy_",
)
