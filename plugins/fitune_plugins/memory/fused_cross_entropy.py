"""Cross-entropy in chunks of tokens with one kernel for loss and gradient: logits are written once, and become their
own gradient where they stand.

Shapes: B rows, S tokens of each, H hidden, V vocabulary, N target tokens, rounded up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fitune import IGNORED, Batch, standing_for, unwrapped
from fitune_plugins.memory.chunked_cross_entropy import Head, chunks
from fitune_plugins.memory.chunked_log_probs import as_labels, scaled
from fitune_plugins.speed import kernels

ROUNDED = 128
"""Rows that the number of targets is rounded up to: few shapes, and none that a product would be slow for."""


def suits(head: Any) -> bool:
    """Whether a head is a frozen matrix and nothing else."""
    kind: object = type(head)
    if kind is not nn.Linear or head.bias is not None or head.weight.requires_grad:
        return False
    return "forward" not in head.__dict__ and not (head._forward_hooks or head._forward_pre_hooks)


def fused_loss(model: nn.Module, batch: Batch, *, chunk: int) -> Tensor:
    """Sum of the cross-entropy over a batch's target tokens, as float32; `suits` must say yes to the model's head."""
    hidden_BSH, labels, rows = _asked(model, batch)
    apply: Callable[..., Tensor] = _FusedCrossEntropy.apply
    return apply(hidden_BSH, labels, rows, Head(unwrapped(model)), chunk)


def fused_log_probs(model: nn.Module, batch: Batch, *, chunk: int) -> Tensor:
    """The log-probability of each target token, `[B, S]`, float32, 0 elsewhere; `suits` must say yes to the head."""
    hidden_BSH, labels, rows = _asked(model, batch)
    apply: Callable[..., Tensor] = _FusedLogProbs.apply
    return as_labels(apply(hidden_BSH, labels, rows, Head(unwrapped(model)), chunk), batch)


def _asked(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
    """Hidden states `[B, S, H]`, labels `[N]`, and the places of these among all tokens; None where they are all."""
    inner = unwrapped(model)
    hidden_BSH = cast(Any, inner.base_model)(**batch.inputs())[0]
    labels = F.pad(batch.labels[:, 1:], (0, 1), value=IGNORED).flatten()
    everything = labels.numel()
    rows = None
    if batch.targets < everything - len(batch.labels):
        # The count is known from the host, so that no device waits for it. The last token is never a target.
        size = min(everything, -(-batch.targets // ROUNDED) * ROUNDED)
        rows = (labels != IGNORED).nonzero_static(size=size, fill_value=everything - 1).squeeze(1)
        labels = labels[rows]
    return hidden_BSH, labels, rows


def _gradient(hidden: Tensor, rows_N: Tensor | None) -> Tensor:
    """What the gradients of hidden states are put into; those of tokens that are no targets are 0."""
    return torch.empty_like(hidden) if rows_N is None else torch.zeros_like(hidden)


def _put(grad: Tensor, rows_N: Tensor | None, part: slice, logits: Tensor, weight: Tensor) -> None:
    """Put the gradients of a chunk's hidden states in place: `logits` are their own gradient by now."""
    if rows_N is None:
        torch.mm(logits, weight, out=grad[part])
    else:
        grad.index_copy_(0, rows_N[part], logits @ weight)


class _FusedCrossEntropy(torch.autograd.Function):
    """Takes the gradients of each chunk in the forward pass and scales them in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden_BSH: Tensor, labels_N: Tensor, rows_N: Tensor | None, head: Head, chunk: int
    ) -> Tensor:
        hidden, weight = hidden_BSH.reshape(-1, hidden_BSH.shape[-1]), head.module.weight
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad = _gradient(hidden, rows_N) if ctx.needs_input_grad[0] else None
        for part, times in chunks(labels_N, chunk):
            with standing_for(times):
                here = hidden[part] if rows_N is None else hidden.index_select(0, rows_N[part])
                logits = here @ weight.t()
                total += kernels.cross_entropy_(logits, labels_N[part], head.limit or 0.0).sum()
                if grad is not None:
                    _put(grad, rows_N, part, logits, weight)
                del here, logits
        ctx.save_for_backward(*([] if grad is None else [grad.view(hidden_BSH.shape)]))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grad * grads[0].to(grad.dtype), None, None, None, None


class _FusedLogProbs(torch.autograd.Function):
    """Takes the gradient of each log-probability in the forward pass; each is multiplied in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden_BSH: Tensor, labels_N: Tensor, rows_N: Tensor | None, head: Head, chunk: int
    ) -> Tensor:
        hidden, weight = hidden_BSH.reshape(-1, hidden_BSH.shape[-1]), head.module.weight
        values = torch.zeros(len(hidden), dtype=torch.float32, device=hidden.device)
        grad = _gradient(hidden, rows_N) if ctx.needs_input_grad[0] else None
        for part, times in chunks(labels_N, chunk):
            with standing_for(times):
                here = hidden[part] if rows_N is None else hidden.index_select(0, rows_N[part])
                logits = here @ weight.t()
                losses = kernels.cross_entropy_(logits, labels_N[part], head.limit or 0.0)
                if rows_N is None:
                    torch.neg(losses, out=values[part])
                else:
                    values.index_copy_(0, rows_N[part], losses.neg_())
                if grad is not None:
                    _put(grad, rows_N, part, logits, weight)
                del here, logits
        ctx.save_for_backward(*([] if grad is None else [grad]))
        ctx.shape = hidden_BSH.shape
        return values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return scaled(ctx.saved_tensors[0], -grads[0]).view(ctx.shape), None, None, None, None
