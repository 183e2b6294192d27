"""Lion (arXiv 2302.06675, algorithm 2) as an optimizer of torch, in launches over many tensors at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fitune import decay_groups

TOGETHER = 4 * 2**20
"""Elements that are changed at a time, unless one tensor has more: bounds what a step takes beside the state."""


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
            for bucket in _buckets([p for p in group["params"] if p.grad is not None]):
                self._change(bucket, group)

    def _change(self, bucket: list[Tensor], group: dict[str, Any]) -> None:
        rate, (beta1, beta2) = group["lr"], group["betas"]
        kept = [self._mean(parameter) for parameter in bucket]
        gradients = [_grad(parameter).float() for parameter in bucket]
        means = [mean.float() for mean in kept]  # themselves, where they are float32
        updates = list(torch._foreach_lerp(means, gradients, 1 - beta1))
        torch._foreach_sign_(updates)
        if group["weight_decay"]:
            torch._foreach_mul_(bucket, 1 - rate * group["weight_decay"])
        torch._foreach_add_(bucket, updates, alpha=-rate)
        torch._foreach_lerp_(means, gradients, 1 - beta2)
        if self._dtype != torch.float32:
            torch._foreach_copy_(kept, means)

    def _mean(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter, dtype=self._dtype)
        mean: Tensor = state["exp_avg"]
        return mean


def _grad(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _buckets(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """So many together that they have `TOGETHER` elements, or one alone."""
    bucket: list[Tensor] = []
    elements = 0
    for parameter in parameters:
        if bucket and elements + parameter.numel() > TOGETHER:
            yield bucket
            bucket, elements = [], 0
        bucket.append(parameter)
        elements += parameter.numel()
    if bucket:
        yield bucket
