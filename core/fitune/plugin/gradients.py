"""Who takes gradients as a backward pass gives them, in the place of the loop, which gathers them for one step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn


@runtime_checkable
class GradientOwner(Protocol):
    """Has gradients of its own from their first moment to their last (`Strategy.own_gradients`): it is given each in
    the midst of the backward pass, changes a master by it, or keeps what it needs of it, and lets it go.

    The loop gathers, divides, clips and steps none of these; it copies the masters to the model behind the step, as
    ever (`Strategy.make_master` says which those are). What an owner keeps from step to step stands in the optimizer's
    state, where checkpoints find it.
    """

    masters: Sequence[nn.Parameter]
    """Those whose gradients it takes: all that it was offered, or some of them."""

    def begin(self, loss: Tensor, units: float) -> None:
        """A backward pass is to begin, the only one of its step: gradients will be those of `loss`, a scalar on the
        device, and are to be divided by `units`, by whose number the loss is a mean. Nothing may be changed in a step
        whose loss is not finite; a question to the device would wait for it, and a forecast has no answer.
        """

    def take(self, master: nn.Parameter, gradient: Tensor) -> None:
        """Take the gradient of what the master stands for, as the backward pass gives it, in the parameter's own type:
        nobody else has it. Called at most once a step for each master. One that is not finite may change nothing, and
        neither may what comes behind it in the same step.
        """

    def norms(self) -> Tensor:
        """The norms of the gradients that this step's backward pass gave, not divided: `[masters]`, float32, on the
        device, 0 where none came. Asked once the backward pass is through.
        """

    def changed(self) -> int:
        """How many masters the step has changed so far. It may wait for the device: it is asked where a step fails."""
