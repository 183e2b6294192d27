"""Objective `cpo`: contrastive preference optimisation (Xu et al., arXiv 2401.08417, equation 5)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Gt, Lt

from fitune import Batch, Objective, Outcome, Scores, hookimpl
from fitune_plugins.objectives.pairs import OfPairs, Pairs, per_token, smoothed

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class CpoOptions:
    """Options of the objective `cpo`."""

    beta: Annotated[float, Gt(0)] = 0.1
    """What log-probabilities are multiplied by to be rewards."""
    alpha: Annotated[float, Ge(0)] = 1.0
    """Weight of the chosen answer's cross-entropy a token beside the loss, which keeps it likely."""
    label_smoothing: Annotated[float, Ge(0), Lt(0.5)] = 0.0
    """How likely a pair is to be the wrong way round."""


class Cpo(OfPairs):
    """`-log sigmoid(beta (l_chosen - l_rejected))`, l the log-probability of an answer, and the chosen one's
    cross-entropy.
    """

    def __init__(self, options: CpoOptions) -> None:
        self.options = options

    def loss(self, model: nn.Module, batch: Batch, scores: Scores) -> Outcome:
        """The sum over pairs."""
        options, pairs = self.options, Pairs.of(batch)
        log_probs_D = scores.log_probs(model, batch)
        chosen, rejected = pairs.sides(log_probs_D)
        means_P, _ = pairs.sides(per_token(log_probs_D, scores.targets(batch)))
        losses_P = smoothed(options.beta * (chosen - rejected), options.label_smoothing) - options.alpha * means_P
        return Outcome(loss=pairs.sum(losses_P), measures=pairs.measures(options.beta * log_probs_D, log_probs_D))


@hookimpl
def ft_objectives() -> Iterable[Objective[CpoOptions]]:
    """Offer the objective."""
    yield Objective(
        name="cpo",
        summary="Contrastive preference optimisation: preference and cross-entropy of chosen answers, no reference",
        options=CpoOptions,
        make=Cpo,
        takes="pairs",
    )
