"""One optimizer step, from its micro-batches to updated weights: what a run makes, and what a forecast traces."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from fitune.compose.loss_scaling import LossScaling
from fitune.compose.optimizer import Trainables
from fitune.plugin.dataflow import Batch
from fitune.plugin.strategy import Strategy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from fitune.plugin.strategy import Loss

Phase = Literal["load", "forward", "loss", "backward", "gradients", "optimizer", "evaluation"]
"""What a run is doing: "loss" is all of the forward pass behind the model's last layer, "gradients" is their sum over
micro-batches and clipping."""


def nobody(phase: Phase) -> None:
    """Is told of phases, and does nothing."""


def alone() -> None:
    """The reduction of gradients where there is one process: nothing to do."""


def always(norm: Tensor, loss_sum: Tensor) -> bool:
    """Makes every step, and looks at nothing."""
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """All that an optimizer step works with."""

    model: PreTrainedModel
    loss: Loss
    trainables: Trainables
    optimizer: torch.optim.Optimizer
    strategies: Sequence[Strategy]
    """The recipe's memory strategies, in its order."""
    max_grad_norm: float
    device: torch.device
    pin_memory: bool = False
    scaling: LossScaling | None = None
    """Of the loss, where the model computes in float16."""

    def make(
        self,
        micro_batches: Iterable[Batch],
        targets: int,
        *,
        reduce: Callable[[], None] = alone,
        enter: Callable[[Phase], None] = nobody,
        accept: Callable[[Tensor, Tensor], bool] = always,
    ) -> tuple[Tensor, Tensor]:
        """Make a step over these micro-batches, on the host; `targets` are the step's, over all processes.

        `reduce` sums the gradients over processes; `enter` is told of each phase; where `accept`, given the norm of the
        gradient and the sum of this process' losses, says no, no weight is changed. Gives that sum and that norm,
        float32 scalars on the device.
        """
        factor = None if self.scaling is None else self.scaling.factor(targets)
        loss_sum = torch.zeros((), dtype=torch.float32, device=self.device)
        with self._around():
            for batch in micro_batches:
                enter("forward")
                loss = self.loss(self.model, batch.to(self.device, pin=self.pin_memory))
                enter("backward")
                (loss if factor is None else loss * factor).backward()
                enter("gradients")
                self.trainables.gather()
                loss_sum += loss.detach()
        enter("gradients")
        reduce()
        norm = self.trainables.finish(targets if factor is None else targets * factor, self.max_grad_norm)
        if accept(norm, loss_sum):
            enter("optimizer")
            self.optimizer.step()
        self.trainables.publish()
        return loss_sum, norm

    @contextlib.contextmanager
    def _around(self) -> Iterator[None]:
        """The strategies' contexts, the first outermost; those that were entered are left if a later one fails."""
        with contextlib.ExitStack() as stack:
            for strategy in self.strategies:
                stack.enter_context(strategy.around_step())
            yield
