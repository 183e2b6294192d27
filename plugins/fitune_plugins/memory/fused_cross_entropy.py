"""Cross-entropy in chunks of tokens with one kernel for loss and gradient: logits are written once, and become their
own gradient where they stand.

Shapes: B rows, S tokens of each, H hidden, V vocabulary, N target tokens, rounded up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fitune import IGNORED, Batch, standing_for, unwrapped
from fitune_plugins.memory.chunked_cross_entropy import Head, chunks
from fitune_plugins.memory.chunked_log_probs import as_labels, scaled
from fitune_plugins.speed import kernels
from fitune_plugins.speed.kernels.library import launches_on

ROUNDED = 128
"""Rows that the number of targets is rounded up to: few shapes, and none that a product would be slow for."""


def suits(head: Any) -> bool:
    """Whether a head is a frozen matrix and nothing else, where kernels can be launched."""
    kind: object = type(head)
    if kind is not nn.Linear or head.bias is not None or head.weight.requires_grad:
        return False
    if not launches_on(head.weight.device):
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
    rows, size = None, -(-batch.targets // ROUNDED) * ROUNDED
    if size < everything and batch.targets < everything - len(batch.labels):
        # The count is known from the host, so that no device waits for it. The last token is never a target.
        rows = (labels != IGNORED).nonzero_static(size=size, fill_value=everything - 1).squeeze(1)
        labels = labels[rows]
    return hidden_BSH, labels, rows


def _computed(
    hidden: Tensor,
    labels_N: Tensor,
    rows_N: Tensor | None,
    head: Head,
    chunk: int,
    take: Callable[[slice, Tensor], None],
    *,
    wants: bool,
) -> Tensor | None:
    """Have the losses `[n]` of each chunk taken; gives their gradients by the hidden states `[B x S, H]`, if wanted.

    Target tokens stand at the beginning of what will be the gradient: first their hidden states, then their gradients.
    So whatever share of the tokens is trained on, no more memory is taken than where all of them are.
    """
    weight = head.module.weight
    grad = torch.empty_like(hidden) if wants else None
    parts = [(slice(part.start, min(part.stop, len(labels_N))), times) for part, times in chunks(labels_N, chunk)]
    for part, times in parts:
        with standing_for(times):
            here = hidden[part] if rows_N is None else _rows(hidden, rows_N[part], None if grad is None else grad[part])
            logits = here @ weight.t()
            take(part, kernels.cross_entropy_(logits, labels_N[part], head.limit or 0.0))
            if grad is not None:
                torch.mm(logits, weight, out=grad[part])  # `logits` are their own gradient by now
            del here, logits
    if grad is not None and rows_N is not None:
        _spread(grad, rows_N, parts)
    return grad


def _rows(hidden: Tensor, rows_N: Tensor, out: Tensor | None) -> Tensor:
    return hidden.index_select(0, rows_N) if out is None else torch.index_select(hidden, 0, rows_N, out=out)


def _spread(grad: Tensor, rows_N: Tensor, parts: Sequence[tuple[slice, int]]) -> None:
    """Put the first N rows where they belong, and 0 in all others. None belongs further up than it stands, for rows
    are in order: so the last are moved first, into places that nothing is moved from any more.
    """
    grad[len(rows_N) :].zero_()
    for part, times in reversed(parts):
        with standing_for(times):
            moved = grad[part].clone()
            grad[part].zero_()
            grad.index_copy_(0, rows_N[part], moved)


class _FusedCrossEntropy(torch.autograd.Function):
    """Takes the gradients of each chunk in the forward pass and scales them in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden_BSH: Tensor, labels_N: Tensor, rows_N: Tensor | None, head: Head, chunk: int
    ) -> Tensor:
        hidden = hidden_BSH.reshape(-1, hidden_BSH.shape[-1])
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)

        def take(part: slice, losses: Tensor) -> None:
            total.add_(losses.sum())

        grad = _computed(hidden, labels_N, rows_N, head, chunk, take, wants=ctx.needs_input_grad[0])
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
        hidden = hidden_BSH.reshape(-1, hidden_BSH.shape[-1])
        values = torch.zeros(len(hidden), dtype=torch.float32, device=hidden.device)

        def take(part: slice, losses: Tensor) -> None:
            if rows_N is None:
                torch.neg(losses, out=values[part])
            else:
                values.index_copy_(0, rows_N[part], losses.neg_())

        grad = _computed(hidden, labels_N, rows_N, head, chunk, take, wants=ctx.needs_input_grad[0])
        ctx.save_for_backward(*([] if grad is None else [grad]))
        ctx.shape = hidden_BSH.shape
        return values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return scaled(ctx.saved_tensors[0], -grads[0]).view(ctx.shape), None, None, None, None
