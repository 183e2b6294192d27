"""What an objective is at work: the loss over a batch, what a step is divided by, and what is measured on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from fitune.plugin.dataflow import Example, Takes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fitune.plugin.dataflow import Batch

Reference = Literal["adapter-off", "prepared"]
"""Where the log-probabilities of the model before training come from: from the same weights without the adapter, in
each step; or computed once, before the first."""

CHOSEN, REJECTED, MISMATCHED = 1.0, -1.0, 2.0
"""What the extra `role` of a batch says of a document: it was chosen, or is desirable; it was rejected, or is not; it
is a prompt with another prompt's answer. 0 is of no such kind, e.g. padding."""

ROLE = "role"
"""The extra of a batch that says it."""

ROLES: Mapping[Takes, tuple[float, ...]] = {
    "documents": (),
    "pairs": (CHOSEN, REJECTED),
    "labelled": (CHOSEN, MISMATCHED),
}
"""Roles of the documents of one example, in their order: of pairs the chosen answer, then the rejected one; of labelled
answers the answer, then its prompt with another row's."""

Measure: TypeAlias = "tuple[Tensor, Tensor]"
"""A sum, and the number of what was summed: float32 scalars on the device."""


class Scores(Protocol):
    """What a run lends to its objective: what the model says of a batch, as cheaply as its memory strategies can."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Sum of the cross-entropy over the batch's target tokens, a float32 scalar."""

    def log_probs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Sum of the log-probabilities of each document's target tokens: float32, `[documents]`, 0 for padding."""

    def reference(self, model: nn.Module, batch: Batch) -> Tensor:
        """The same by the model as it was before training, without a gradient. Ask it before `log_probs`: what it takes
        of memory is free again by then. Only for an objective that says `needs_reference`.
        """

    def last_states(self, model: nn.Module, batch: Batch) -> Tensor:
        """The model's last hidden state at the end of each document: `[documents, hidden]`, in the model's type, with a
        gradient. The end is the last token that is not the padding token, as transformers finds it where it classifies
        a text.
        """

    def targets(self, batch: Batch) -> Tensor:
        """Target tokens of each document: float32, `[documents]`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What an objective makes of a batch."""

    loss: Tensor
    """The SUM over the batch's units, a float32 scalar: the step divides by their number over all of its batches."""
    measures: Mapping[str, Measure] = field(default_factory=dict)
    """By the names of `Criterion.measures`; those that are missing add nothing."""


class Criterion:
    """An objective at work in one run."""

    measures: tuple[str, ...] = ()
    """Names of what is measured in each step and evaluation, beside the loss, e.g. `("accuracy",)`: reported as means,
    in `StepReport.metrics` and `EvalReport.metrics`."""

    def units(self, example: Example) -> int:
        """How many units an example has, by whose number a step's loss and gradient are divided: its target tokens."""
        return example.targets

    def loss(self, model: nn.Module, batch: Batch, scores: Scores) -> Outcome:
        """The loss over a batch, on the device. No operation may wait for the device: use masks, and ask no value."""
        raise NotImplementedError


def no_reference(options: Any) -> bool:
    """Of an objective that knows no reference."""
    return False
