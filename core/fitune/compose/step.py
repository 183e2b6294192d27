"""One optimizer step, from its micro-batches to updated weights: what a run makes, and what a forecast traces."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from fitune.compose.attention_ran import AttentionRan
from fitune.compose.calling import call_for_callable, call_for_context, call_plugin
from fitune.compose.loss_scaling import LossScaling
from fitune.compose.objective import ObjectiveLoss, Tally
from fitune.compose.optimizer import Trainables
from fitune.compose.owned import must_not_be_scaled, owned_by
from fitune.compose.recorder import NoRecorder
from fitune.plugin.dataflow import Batch
from fitune.plugin.strategy import MicroBatch, Recorder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from fitune.compose.model import Strategies
    from fitune.plugin.strategy import Loss

Phase = Literal["load", "forward", "loss", "backward", "gradients", "optimizer", "evaluation"]
"""What a run is doing: "loss" is all of the forward pass behind the model's last layer, "gradients" is their sum over
micro-batches and clipping."""


def nobody(phase: Phase) -> None:
    """Is told of phases, and does nothing."""


def alone() -> None:
    """The reduction of gradients where there is one process: nothing to do."""


def as_it_is(loss: Loss) -> Loss:
    """The loss where no strategy changes it."""
    return loss


def all_of_it(batch: Batch) -> Batch:
    """The part of a batch where rows are computed whole."""
    return batch


def always(norm: Tensor, loss_sum: Tensor) -> bool:
    """Makes every step, and looks at nothing."""
    return True


class Computation:
    """Computes micro-batches, one step after the other: forward pass, backward pass, and what becomes of gradients."""

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        loss: Loss,
        trainables: Trainables,
        device: torch.device,
        pin_memory: bool,
        scaled: bool,
        part: Callable[[Batch], Batch] = all_of_it,
    ) -> None:
        """`scaled`: whether the loss is multiplied before the backward pass; `part` gives what of a batch is computed
        here.
        """
        self.model = model
        self.loss = loss
        self.trainables = trainables
        self.device = device
        self.pin_memory = pin_memory
        self.part = part
        self.attention = AttentionRan(model)
        self._enter: Callable[[Phase], None] = nobody
        self._factor = torch.ones((), dtype=torch.float32, device=device) if scaled else None

    def begin(self, enter: Callable[[Phase], None], factor: float | None) -> None:
        """Begin a step: `enter` is told of each phase, and the loss is multiplied by `factor`, where it is scaled."""
        self._enter = enter
        if self._factor is not None and factor is not None:
            self._factor.fill_(factor)  # where it is: what is recorded reads it from there

    def idle(self, batch: Batch) -> None:
        """Compute a batch as any other, and add nothing by it."""
        self(batch, weight=0.0)

    def __call__(self, batch: Batch, weight: float = 1.0) -> Tensor:
        """Compute a batch, on the host or the device; gives the sum of its loss."""
        try:
            self._enter("forward")
            with self.attention.watch(batch):
                loss = self.loss(self.model, self.part(batch).to(self.device, pin=self.pin_memory))
            if weight != 1:
                loss = loss * weight
            self._enter("backward")
            self.trainables.expect(loss)
            (loss if self._factor is None else loss * self._factor).backward()
            self._enter("gradients")
            self.trainables.gather()
        except BaseException:
            self.trainables.leave()
            raise
        return loss.detach()


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """All that an optimizer step works with."""

    model: PreTrainedModel
    loss: Loss
    trainables: Trainables
    optimizer: torch.optim.Optimizer
    strategies: Strategies
    """The recipe's memory strategies, in its order."""
    max_grad_norm: float
    device: torch.device
    pin_memory: bool = False
    scaling: LossScaling | None = None
    """Of the loss, where the model computes in float16."""
    recorder: Recorder = field(default_factory=NoRecorder)
    """What strategies record micro-batches with."""
    whole: Callable[[Loss], Loss] = as_it_is
    """Gives the loss as strategies have it, which may have to call the model in another way."""
    part: Callable[[Batch], Batch] = all_of_it
    """Gives what of a batch this process computes."""
    tally: Tally = field(default_factory=Tally)
    """What the loss measures on the way, over the step."""
    computation: Computation = field(init=False)
    """How a micro-batch is computed."""
    micro_batch: MicroBatch = field(init=False)
    """The same, as strategies have it."""

    def __post_init__(self) -> None:
        self._share_gradients()
        computation = Computation(
            model=self.model,
            loss=self.whole(self.loss),
            trainables=self.trainables,
            device=self.device,
            pin_memory=self.pin_memory,
            scaled=self.scaling is not None,
            part=self.part,
        )
        changed: MicroBatch = computation
        for use, strategy in reversed(self.strategies):
            changed = call_for_callable(use, "micro_batch", strategy.micro_batch, changed, self.recorder)
        self.trainables.keep = changed is not computation
        object.__setattr__(self, "computation", computation)
        object.__setattr__(self, "micro_batch", changed)

    def _share_gradients(self) -> None:
        """Leave gradients to a strategy that takes them as they come. Raises `RunError` where the loss is scaled."""
        owned = owned_by(self.strategies, self.trainables.pairs, self.optimizer)
        if owned is not None:
            if self.scaling is not None:
                raise must_not_be_scaled(owned)
            self.trainables.leave_to(owned)

    def make(
        self,
        micro_batches: Iterable[Batch],
        targets: int,
        *,
        idle: Iterable[Batch] = (),
        reduce: Callable[[], None] = alone,
        enter: Callable[[Phase], None] = nobody,
        accept: Callable[[Tensor, Tensor], bool] = always,
    ) -> tuple[Tensor, Tensor]:
        """Make a step over these micro-batches, on the host; `targets` are the units of the step's loss, over all
        processes: target tokens, or what else its objective counts.

        Of `idle` micro-batches nothing counts, but that they are computed. `reduce` sums the gradients over processes;
        `enter` is told of each phase; where `accept`, given the norm of the gradient and the sum of this process'
        losses, says no, the optimizer makes no step. Gives that sum and that norm, float32 scalars on the device.
        """
        factor = None if self.scaling is None else self.scaling.factor(targets)
        self.recorder.step += 1
        self.computation.begin(enter, factor)
        self.trainables.begin(targets)
        self.tally.begin()
        loss_sum = torch.zeros((), dtype=torch.float32, device=self.device)
        with self._around():
            for batch in micro_batches:
                loss_sum += self.micro_batch(batch)
            for batch in idle:
                with self.tally.unchanged():
                    self.computation.idle(batch)
        enter("gradients")
        reduce()
        norm = self.trainables.finish(targets if factor is None else targets * factor, self.max_grad_norm)
        if accept(norm, loss_sum):
            enter("optimizer")
            self.optimizer.step()
        self.trainables.publish()
        return loss_sum, norm

    def said(self) -> tuple[str, ...]:
        """What strategies have to tell of micro-batches since they were asked last."""
        told = tuple(self.recorder.said)
        self.recorder.said.clear()
        return told

    def without_effect(self) -> tuple[str, ...]:
        """Strategies that the objective does not ask, in words: once, after the first micro-batch."""
        return self.loss.without_effect() if isinstance(self.loss, ObjectiveLoss) else ()

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """A context within which the model has the weights that are evaluated and saved, where strategies have others
        than those that train. Not within a step.
        """
        contexts = []
        for use, strategy in self.strategies:
            if (found := call_plugin(use, strategy.averaged)) is not None:
                contexts.append((use, call_for_context(use, "averaged", lambda given: given, found)))
        if not contexts:
            yield
            return
        try:
            with contextlib.ExitStack() as stack:
                for use, context in contexts:
                    call_plugin(use, stack.enter_context, context)
                self.trainables.publish()
                yield
        finally:
            self.trainables.publish()

    @contextlib.contextmanager
    def _around(self) -> Iterator[None]:
        """The strategies' contexts, the first outermost; those that were entered are left if a later one fails."""
        with contextlib.ExitStack() as stack:
            for use, strategy in self.strategies:
                context = call_for_context(use, "around_step", strategy.around_step)
                call_plugin(use, stack.enter_context, context)
            yield
