"""Objective `sample`: cross-entropy that counts the more, the worse it is: the square of each document's mean."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt

from fitune import Batch, Criterion, Example, Objective, Outcome, Scores, hookimpl

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleOptions:
    """Options of the objective `sample`."""

    power: Annotated[float, Gt(0)] = 2.0
    """What a document's mean cross-entropy is raised to."""


class Sample(Criterion):
    """At work in one run."""

    measures = ("perplexed",)

    def __init__(self, options: SampleOptions) -> None:
        self._power = options.power

    def units(self, example: Example) -> int:
        """A document is a unit."""
        return len(example.lengths) or 1

    def loss(self, model: nn.Module, batch: Batch, scores: Scores) -> Outcome:
        """Sum over documents; those that are padding have no target, and add nothing."""
        targets = scores.targets(batch)
        means = -scores.log_probs(model, batch) / targets.clamp(min=1)
        there = (targets > 0).float()
        told = {"perplexed": ((means.detach() * there).sum(), there.sum())}
        return Outcome(loss=(means.clamp(min=0) ** self._power * there).sum(), measures=told)


@hookimpl
def ft_objectives() -> Iterable[Objective[SampleOptions]]:
    """Offer the objective."""
    yield Objective(
        name="sample",
        summary="A power of each document's mean cross-entropy",
        options=SampleOptions,
        make=Sample,
    )
