"""Objective `sft`: supervised fine-tuning, the cross-entropy of the tokens that are trained on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fitune import Batch, Criterion, NoOptions, Objective, Outcome, Scores, hookimpl

if TYPE_CHECKING:
    from torch import nn


class Sft(Criterion):
    """Of each target token, given all tokens before it."""

    def loss(self, model: nn.Module, batch: Batch, scores: Scores) -> Outcome:
        """The sum over target tokens."""
        return Outcome(loss=scores.loss(model, batch))


@hookimpl
def ft_objectives() -> Iterable[Objective[NoOptions]]:
    """Offer the objective."""
    yield Objective(
        name="sft",
        summary="Supervised fine-tuning: cross-entropy of the tokens that are trained on",
        options=NoOptions,
        make=lambda options: Sft(),
    )
