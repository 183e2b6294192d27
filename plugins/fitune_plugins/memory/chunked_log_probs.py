"""Log-probabilities of target tokens in chunks of tokens. Shapes: N target tokens, H hidden, V vocabulary.

A loss of log-probabilities knows what each is multiplied by only when all of them are known. With a head that is frozen
the gradient of each by itself is taken in the forward pass, while the chunk's logits are there, and multiplied in the
backward pass: a row of hidden states has one log-probability, so its gradient is one row. With a head that trains, each
chunk is computed again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fitune import IGNORED, Batch, standing_for, unwrapped
from fitune_plugins.memory.chunked_cross_entropy import Head, chunks


def chunked_log_probs(model: nn.Module, batch: Batch, *, chunk: int) -> Tensor:
    """The log-probability of each target token, `[batch, length]`, float32, 0 elsewhere; equal to
    `fitune.compose.loss.plain_log_probs`.
    """
    inner = unwrapped(model)
    hidden = cast(Any, inner.base_model)(**batch.inputs())[0]
    labels = F.pad(batch.labels[:, 1:], (0, 1), value=IGNORED).flatten()
    # The count is known from the host, so that no device waits for it; it may be more than there are. The last token of
    # all is never a target.
    chosen = (labels != IGNORED).nonzero_static(size=batch.targets, fill_value=labels.numel() - 1).squeeze(1)
    hidden_NH = hidden.flatten(0, 1)[chosen]
    head = inner.get_output_embeddings()
    parameters = [p for p in head.parameters() if p.requires_grad and torch.is_grad_enabled()]
    apply: Callable[..., Tensor] = _Recomputed.apply if parameters else _Frozen.apply
    values_N = apply(hidden_NH, labels[chosen], Head(inner), chunk, *parameters)
    found = torch.zeros(labels.numel(), dtype=torch.float32, device=values_N.device).index_copy(0, chosen, values_N)
    return as_labels(found, batch)


def as_labels(values: Tensor, batch: Batch) -> Tensor:
    """Values of the places that predict, flat, as those of the tokens that are predicted: `[batch, length]`."""
    return F.pad(values.view(batch.labels.shape)[:, :-1], (1, 0))


def scaled(grad_NH: Tensor, by_N: Tensor) -> Tensor:
    """Each row times its own float32 number, rounded once."""
    return torch.mul(grad_NH, by_N[:, None], out=torch.empty_like(grad_NH))


def _values(head: Head, hidden: Tensor, labels: Tensor) -> Tensor:
    return -F.cross_entropy(head(hidden), labels, ignore_index=IGNORED, reduction="none")


class _Frozen(torch.autograd.Function):
    """With a head that is frozen."""

    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, labels_N: Tensor, head: Head, chunk: int) -> Tensor:
        values_N = torch.empty(len(labels_N), dtype=torch.float32, device=hidden_NH.device)
        wants = ctx.needs_input_grad[0]
        grad_NH = torch.empty_like(hidden_NH) if wants else None
        for part, times in chunks(labels_N, chunk):
            with standing_for(times):
                with torch.set_grad_enabled(wants):
                    piece = hidden_NH[part].detach().requires_grad_(wants)
                    values = _values(head, piece, labels_N[part])
                    total = values.sum()
                values_N[part] = values.detach()
                if grad_NH is not None:
                    (grad_NH[part],) = torch.autograd.grad(total, (piece,))
        ctx.save_for_backward(*([] if grad_NH is None else [grad_NH]))
        return values_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return scaled(ctx.saved_tensors[0], grads[0]), None, None, None


class _Recomputed(torch.autograd.Function):
    """With a head of which something trains."""

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, labels_N: Tensor, head: Head, chunk: int, *parameters: nn.Parameter
    ) -> Tensor:
        values_N = torch.empty(len(labels_N), dtype=torch.float32, device=hidden_NH.device)
        for part, times in chunks(labels_N, chunk):
            with standing_for(times):
                values_N[part] = _values(head, hidden_NH[part], labels_N[part])
        ctx.save_for_backward(hidden_NH, labels_N)
        ctx.head, ctx.chunk, ctx.parameters = head, chunk, parameters
        return values_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_NH, labels_N = ctx.saved_tensors
        wants, parameters = ctx.needs_input_grad[0], ctx.parameters
        grad_NH = torch.empty_like(hidden_NH) if wants else None
        sums = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
        for part, times in chunks(labels_N, ctx.chunk):
            with standing_for(times):
                with torch.enable_grad():
                    piece = hidden_NH[part].detach().requires_grad_(wants)
                    values = _values(ctx.head, piece, labels_N[part])
                of_piece = (piece,) if wants else ()
                found = torch.autograd.grad(values, (*of_piece, *parameters), grads[0][part])
                if grad_NH is not None:
                    grad_NH[part] = found[0]
                for total, one in zip(sums, found[len(of_piece) :], strict=True):
                    total += one
        of_parameters = [total.to(p.dtype) for total, p in zip(sums, parameters, strict=True)]
        return (grad_NH, None, None, None, *of_parameters)
