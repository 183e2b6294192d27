"""Cross-entropy of a causal language model in chunks of tokens. Shapes: N target tokens, H hidden, V vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from fitune import IGNORED, Batch, ModelError, has_values, standing_for, unwrapped

PROBE = 200.0
"""Largest logit that `must_match` tries: well beyond known soft caps (30 to 50)."""

ALIKE = 4
"""Chunks that a forecast traces: the first two, one that stands for the others, and the last, which may be shorter."""


def chunked_loss(model: nn.Module, batch: Batch, *, chunk: int) -> Tensor:
    """Sum of the cross-entropy over a batch's target tokens, as float32; equal to `fitune.compose.loss.plain_loss`."""
    inner = unwrapped(model)
    hidden = cast(Any, inner.base_model)(**batch.inputs())[0]
    labels = F.pad(batch.labels[:, 1:], (0, 1), value=IGNORED).flatten()
    # The count is known from the host, so that no device waits for it; it may be more than there are. The last token of
    # all is never a target.
    chosen = (labels != IGNORED).nonzero_static(size=batch.targets, fill_value=labels.numel() - 1).squeeze(1)
    hidden_NH = hidden.flatten(0, 1)[chosen]
    head = inner.get_output_embeddings()
    parameters = [p for p in head.parameters() if p.requires_grad and torch.is_grad_enabled()]
    apply: Callable[..., Tensor] = _ChunkedCrossEntropy.apply
    return apply(hidden_NH, labels[chosen], Head(inner), chunk, *parameters)


def must_match(model: nn.Module) -> None:
    """Raise `ModelError` if the model does more to its logits than its head and a known soft cap do.

    The head's output is replaced by numbers of a wide range, to see what the model makes of them: an untrained or
    small model's own logits may be too small to show a soft cap. The head's input must be the last hidden states.
    """
    inner = unwrapped(model)
    module = inner.get_output_embeddings()
    if module is None:
        return  # no logits are made of it
    ids = torch.arange(1, 9, device=inner.device)[None] % inner.config.get_text_config().vocab_size
    seen: list[tuple[Tensor, Tensor]] = []

    def replace(head: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> Tensor:
        wide = torch.linspace(-PROBE, PROBE, logits.numel(), device=logits.device)  # float16 has no so small steps
        seen.append((inputs[0], wide.to(logits.dtype).view_as(logits)))
        return seen[-1][1]

    was_training = inner.training
    inner.eval()
    handle = None if module is None else module.register_forward_hook(replace)
    try:
        with torch.no_grad():
            found = cast(Any, inner)(input_ids=ids, use_cache=False).logits
            hidden = cast(Any, inner.base_model)(input_ids=ids, use_cache=False)[0]
    finally:
        inner.train(was_training)
        if handle is not None:
            handle.remove()
    one_head = len(seen) == 1
    close = [_close(seen[0][0], hidden), _close(found, Head(inner).cap(seen[0][1]))] if one_head else []
    if not has_values(inner):
        return  # a forecast: it takes the same memory, and proves nothing
    same = one_head and all(close)
    if not same:
        raise ModelError(
            f"chunked-loss: {type(inner).__name__} changes its logits around the output head in a way that is not "
            'known. Remove the [[memory.strategy]] with use = "chunked-loss"'
        )


def _close(one: Tensor, other: Tensor) -> Tensor | bool:
    tolerance = 10 * torch.finfo(one.dtype).eps
    return one.shape == other.shape and torch.isclose(one.float(), other.float(), rtol=tolerance, atol=tolerance).all()


class Head:
    """Hidden states `[..., H]` to logits `[..., V]` in float32, as the model itself gives them."""

    def __init__(self, inner: PreTrainedModel) -> None:
        self.module: Any = inner.get_output_embeddings()
        self.limit: float | None = getattr(inner.config.get_text_config(), "final_logit_softcapping", None)

    def __call__(self, hidden: Tensor) -> Tensor:
        return self.cap(self.module(hidden))

    def cap(self, logits: Tensor) -> Tensor:
        """Cap the head's output (Gemma 2, arXiv 2408.00118) where the model does, and take it to float32."""
        if self.limit is not None:
            logits = torch.tanh(logits / self.limit) * self.limit
        return logits.float()


def chunks(labels_N: Tensor, chunk: int) -> list[tuple[slice, int]]:
    """Each chunk, and how many it stands for; without values not all of them are there."""
    chunks = [(slice(start, start + chunk), 1) for start in range(0, len(labels_N), chunk)]
    if labels_N.is_meta and len(chunks) > ALIKE:
        chunks = [*chunks[: ALIKE - 2], (chunks[ALIKE - 2][0], len(chunks) - ALIKE + 1), chunks[-1]]
    return chunks


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Takes the gradients of each chunk in the forward pass and scales them in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, labels_N: Tensor, head: Head, chunk: int, *parameters: nn.Parameter
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden_NH.device)
        wants = ctx.needs_input_grad[0] or bool(parameters)
        grad_NH = torch.empty_like(hidden_NH) if wants else None
        grads = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
        for part, times in chunks(labels_N, chunk):
            with standing_for(times):
                with torch.set_grad_enabled(wants):
                    piece = hidden_NH[part].detach().requires_grad_(wants)
                    loss = F.cross_entropy(head(piece), labels_N[part], reduction="sum")
                total += loss.detach()
                if grad_NH is not None:
                    grad_NH[part], *of_parameters = torch.autograd.grad(loss, (piece, *parameters))
                    for grad, one in zip(grads, of_parameters, strict=True):
                        grad += one
        ctx.save_for_backward(*([] if grad_NH is None else [grad_NH]), *grads)
        ctx.dtypes = [p.dtype for p in parameters]
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        grad_NH, *grads = ctx.saved_tensors
        scaled = [(g * scale).to(dtype) for g, dtype in zip(grads, ctx.dtypes, strict=True)]
        return (grad_NH * scale.to(grad_NH.dtype), None, None, None, *scaled)
