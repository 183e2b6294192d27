"""Whether an optimizer step is made: one whose loss or gradient is not finite would spoil the weights for good."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from fitune.loss_scaling import LossScaling


@dataclass(slots=True)
class Judge:
    """Of one step; every process decides alike, for it looks at what is summed over all."""

    accelerator: Accelerator
    scaling: LossScaling | None
    masters: list[nn.Parameter]
    look: bool = False
    """Whether to note the gradients' norms."""
    loss_sum: float = math.nan
    """Over all processes."""
    overflow: bool = False
    """Whether float16 could not hold the gradient, so that the scale of the loss was lowered."""
    finite: bool = True
    made: bool = False
    norms: tuple[float, ...] = ()
    """Of each parameter's gradient, where it was asked for."""

    def accept(self, norm: Tensor, loss_sum: Tensor) -> bool:
        """Whether the step is to be made; waits for the device."""
        self.loss_sum = cast(Tensor, self.accelerator.reduce(loss_sum, reduction="sum")).item()
        self.overflow = self.scaling is not None and not self.scaling.accept(norm)
        self.finite = math.isfinite(self.loss_sum) and (self.overflow or math.isfinite(norm.item()))
        if self.look and self.finite and not self.overflow:
            gradients = [p.grad if p.grad is not None else torch.zeros(()) for p in self.masters]
            self.norms = tuple(norm.item() for norm in torch._foreach_norm(gradients, 2))
        self.made = self.finite and not self.overflow
        return self.made
