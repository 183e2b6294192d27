"""Lion (arXiv 2302.06675, algorithm 2) as an optimizer of torch, in launches over many tensors at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fitune import buckets, decay_groups

TOGETHER = 4 * 2**20
"""Elements that are changed at a time, of one tensor or of several: bounds what a step takes beside the state."""

Piece = tuple[Tensor, Tensor, Tensor]
"""Rows of a parameter, of its gradient and of its mean."""


class LionOptimizer(torch.optim.Optimizer):
    """Sign of the interpolated mean; weight decay as in AdamW, apart from the gradient."""

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        *,
        learning_rate: float,
        betas: tuple[float, float],
        weight_decay: float,
        dtype: torch.dtype,
    ) -> None:
        """`dtype` is that of the mean."""
        defaults = {"lr": learning_rate, "betas": betas, "weight_decay": weight_decay}
        super().__init__(decay_groups(parameters), defaults)
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Change each parameter that has a gradient."""
        for group in self.param_groups:
            pieces = (piece for p in group["params"] if p.grad is not None for piece in self._pieces(p, p.grad))
            for bucket in buckets(pieces, _elements, TOGETHER):
                self._change(bucket, group)

    def _change(self, bucket: list[Piece], group: dict[str, Any]) -> None:
        rate, (beta1, beta2) = group["lr"], group["betas"]
        parameters, gradients, kept = ([piece[at] for piece in bucket] for at in range(3))
        gradients = [gradient.float() for gradient in gradients]
        means = [mean.float() for mean in kept]  # themselves, where they are float32
        updates = list(torch._foreach_lerp(means, gradients, 1 - beta1))
        torch._foreach_sign_(updates)
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
        torch._foreach_add_(parameters, updates, alpha=-rate)
        torch._foreach_lerp_(means, gradients, 1 - beta2)
        if self._dtype != torch.float32:
            torch._foreach_copy_(kept, means)

    def _pieces(self, parameter: Tensor, gradient: Tensor) -> Iterator[Piece]:
        """All of a parameter, or so many of its rows at a time that they have no more than `TOGETHER` elements."""
        state = self.state[parameter]
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter, dtype=self._dtype)
        every = (parameter.detach(), gradient, state["exp_avg"])
        if parameter.numel() <= TOGETHER:
            yield every
            return
        rows = max(1, TOGETHER * parameter.shape[0] // parameter.numel())
        yield from zip(*(tensor.split(rows) for tensor in every), strict=True)


def _elements(piece: Piece) -> int:
    return piece[0].numel()
