"""Dynamic loss scaling, for models that compute in float16.

The smallest number of float16 is 6e-8, and gradients of activations are smaller than that where a mean is taken over
many tokens: they would be 0. So the loss is multiplied by a scale before the backward pass, and the gradients' float32
sums divided by it again (Micikevicius et al., "Mixed precision training", arXiv 1710.03740, section 3.2). Its largest
number is 65504: where a gradient overflows, the step is skipped, and the scale halved; after 2000 steps without that it
is doubled.

The constants are those of `torch.amp.GradScaler`, whose scale, too, is that of a mean over the step's tokens. It is not
used itself, for it would look at every gradient once more: here the norm, which is taken anyway, says whether they are
finite.

A skipped step changes no weight, no optimizer state and no learning rate: as in accelerate, the schedule goes on with
steps that are made. It counts as one of the run's steps, and its data are not seen again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from fitune.errors import RunError

INITIAL_SCALE = 2.0**16

GROWTH_INTERVAL = 2000
"""Steps without an overflow after which the scale is doubled."""

MOST_SKIPPED = 20
"""Steps that may be skipped in a row: by then the scale is below 0.1, and it is not the scale that overflows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingState:
    """Where a scaling stands."""

    scale: float
    skipped: int
    made: int
    """Steps without an overflow since the scale changed."""


class LossScaling:
    """The scale of one run. Every process decides alike, for the norm that it decides by is that of all."""

    def __init__(self) -> None:
        self.scale = INITIAL_SCALE
        """What the mean of the loss over a step's target tokens is multiplied by, or somewhat less."""
        self.skipped = 0
        """Steps that were skipped in a row, the last one included."""
        self._made = 0

    def state(self) -> ScalingState:
        """Where it stands."""
        return ScalingState(scale=self.scale, skipped=self.skipped, made=self._made)

    def load(self, state: ScalingState) -> None:
        """Go on from there."""
        self.scale, self.skipped, self._made = state.scale, state.skipped, state.made

    def factor(self, targets: int) -> float:
        """What the sum of the losses of a step with this many target tokens is multiplied by.

        A power of two: every float type multiplies by it, and divides again, without rounding.
        """
        return float(2.0 ** math.floor(math.log2(self.scale / targets)))

    def accept(self, norm: Tensor) -> bool:
        """Whether a step with this norm of the gradient is to be made; waits for the device, and sets the scale.

        Raises `RunError` if too many in a row are not.
        """
        if not math.isfinite(norm.item()):
            self.scale /= 2
            self._made = 0
            self.skipped += 1
            if self.skipped >= MOST_SKIPPED:
                raise RunError(
                    f"{self.skipped} steps in a row had a gradient that float16 cannot hold, at last with the loss "
                    f"scaled by {self.scale:g}, so training cannot go on. Nothing is saved. Set the model's dtype to "
                    '"bfloat16" or "float32"'
                )
            return False
        self.skipped = 0
        self._made += 1
        if self._made == GROWTH_INTERVAL:
            self.scale *= 2
            self._made = 0
        return True


def loss_scaling(model: nn.Module, optimized: Iterable[nn.Parameter]) -> LossScaling | None:
    """The scaling that a model needs: None unless some of it is in float16.

    Raises `RunError` if what the optimizer works on is.
    """
    if any(p.dtype == torch.float16 for p in optimized):
        raise RunError(
            "[train] master_weights = false, but what trains is in float16, where squares of gradients are 0: it needs "
            'float32 copies. Remove it, or set the model\'s dtype to "bfloat16"'
        )
    return LossScaling() if any(p.dtype == torch.float16 for p in model.parameters()) else None


@dataclass(slots=True)
class StepCheck:
    """Of one step; every process decides alike, for it looks at what is summed over all."""

    accelerator: Accelerator
    scaling: LossScaling | None
    gradient_norms: Callable[[], Tensor]
    """Gives the norm of each parameter's gradient, over all processes: `[parameters]`."""
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
            self.norms = tuple(self.gradient_norms().tolist())
        self.made = self.finite and not self.overflow
        return self.made
