"""Cross-entropy of a causal language model in chunks of tokens. Shapes: N target tokens, H hidden, V vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import PreTrainedModel

from fitune import IGNORED, Batch, ModelError


def chunked_loss(model: nn.Module, batch: Batch, *, chunk: int) -> Tensor:
    """Sum of the cross-entropy over a batch's target tokens, as float32; equal to `fitune.loss.plain_loss`."""
    inner = _unwrapped(model)
    hidden = cast(Any, inner.base_model)(input_ids=batch.input_ids, use_cache=False)[0]
    labels = batch.labels[:, 1:].flatten()
    # The count is known from the host, so that no device waits for it.
    chosen = (labels != IGNORED).nonzero_static(size=batch.targets).squeeze(1)
    hidden_NH = hidden[:, :-1].flatten(0, 1)[chosen]
    head = inner.get_output_embeddings()
    parameters = [p for p in head.parameters() if p.requires_grad and torch.is_grad_enabled()]
    apply: Callable[..., Tensor] = _ChunkedCrossEntropy.apply
    return apply(hidden_NH, labels[chosen], _Head(inner), chunk, *parameters)


def must_match(model: nn.Module) -> None:
    """Raise `ModelError` if the model does more to its logits than its head and a known soft cap do."""
    inner = _unwrapped(model)
    ids = torch.arange(1, 9, device=inner.device)[None] % inner.config.get_text_config().vocab_size
    was_training = inner.training
    inner.eval()
    with torch.no_grad():
        expected = cast(Any, inner)(input_ids=ids, use_cache=False).logits.float()
        found = _Head(inner)(cast(Any, inner.base_model)(input_ids=ids, use_cache=False)[0])
    inner.train(was_training)
    if expected.shape != found.shape or not torch.allclose(expected, found, rtol=1e-2, atol=1e-2):
        raise ModelError(
            f"chunked-loss: {type(inner).__name__} changes its logits after the output head in a way that is not "
            'known. Remove the [[memory.strategy]] with use = "chunked-loss"'
        )


class _Head:
    """Hidden states `[..., H]` to logits `[..., V]` in float32, as the model itself gives them."""

    def __init__(self, inner: PreTrainedModel) -> None:
        self.module = inner.get_output_embeddings()
        self.cap: float | None = getattr(inner.config.get_text_config(), "final_logit_softcapping", None)

    def __call__(self, hidden: Tensor) -> Tensor:
        logits = self.module(hidden)
        if self.cap is not None:  # Gemma 2, arXiv 2408.00118
            logits = torch.tanh(logits / self.cap) * self.cap
        return cast(Tensor, logits.float())


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Takes the gradients of each chunk in the forward pass and scales them in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, labels_N: Tensor, head: _Head, chunk: int, *parameters: nn.Parameter
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden_NH.device)
        wants = ctx.needs_input_grad[0] or bool(parameters)
        grad_NH = torch.empty_like(hidden_NH) if wants else None
        grads = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
        for start in range(0, len(labels_N), chunk):
            part = slice(start, start + chunk)
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


def _unwrapped(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside peft's wrapper, its layers adapted."""
    get = getattr(model, "get_base_model", None)
    inner = get() if get is not None else model
    assert isinstance(inner, PreTrainedModel)
    return inner
