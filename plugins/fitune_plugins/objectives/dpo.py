"""Objective `dpo`: direct preference optimisation (Rafailov et al., arXiv 2305.18290)."""

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
class DpoOptions:
    """Options of the objective `dpo`."""

    beta: Annotated[float, Gt(0)] = 0.1
    """How strongly the model is held to its reference; the smaller, the further it may go."""
    label_smoothing: Annotated[float, Ge(0), Lt(0.5)] = 0.0
    """How likely a pair is to be the wrong way round (conservative DPO, Mitchell 2023)."""
    rpo_alpha: Annotated[float, Ge(0)] = 0.0
    """Weight of the chosen answer's cross-entropy a token beside the loss, which keeps it likely (iterative reasoning
    preference optimisation, Pang et al., arXiv 2404.19733, with 1); 0 for none."""
    length_normalized: bool = False
    """Whether log-probabilities are taken a token, so that long answers gain nothing by their length (Lambert et al.,
    arXiv 2411.15124, with a beta of 5)."""


class Dpo(OfPairs):
    """`-log sigmoid(beta (d_chosen - d_rejected))`, d the log-probability of an answer less its reference's."""

    def __init__(self, options: DpoOptions) -> None:
        self.options = options

    def loss(self, model: nn.Module, batch: Batch, scores: Scores) -> Outcome:
        """The sum over pairs."""
        options, pairs = self.options, Pairs.of(batch)
        reference_D = scores.reference(model, batch)
        log_probs_D, targets_D = scores.log_probs(model, batch), scores.targets(batch)
        gains_D = log_probs_D - reference_D
        if options.length_normalized:
            gains_D = per_token(gains_D, targets_D)
        chosen, rejected = pairs.sides(gains_D)
        losses_P = smoothed(options.beta * (chosen - rejected), options.label_smoothing)
        if options.rpo_alpha:
            losses_P = losses_P - options.rpo_alpha * per_token(log_probs_D, targets_D)[:-1]
        return Outcome(loss=pairs.sum(losses_P), measures=pairs.measures(options.beta * gains_D, log_probs_D))


@hookimpl
def ft_objectives() -> Iterable[Objective[DpoOptions]]:
    """Offer the objective."""
    yield Objective(
        name="dpo",
        summary="Direct preference optimisation: the chosen answer above the rejected one, beside a reference",
        options=DpoOptions,
        make=Dpo,
        takes="pairs",
        needs_reference=lambda options: True,
    )
