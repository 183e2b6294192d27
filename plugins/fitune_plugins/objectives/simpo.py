"""Objective `simpo`: simple preference optimisation with a reference-free reward (Meng et al., arXiv 2405.14734)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Gt

from fitune import Batch, Objective, Outcome, Scores, hookimpl
from fitune_plugins.objectives.pairs import OfPairs, Pairs, per_token, smoothed

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class SimpoOptions:
    """Options of the objective `simpo`."""

    beta: Annotated[float, Gt(0)] = 2.0
    """What a mean log-probability a token is multiplied by to be a reward."""
    gamma: Annotated[float, Ge(0)] = 1.0
    """By how much the chosen answer's reward is to be above the rejected one's. TRL's `simpo_gamma` is this one."""
    alpha: Annotated[float, Ge(0)] = 0.0
    """Weight of the chosen answer's cross-entropy a token beside the loss, which keeps it likely (CPO-SimPO)."""


class Simpo(OfPairs):
    """`-log sigmoid(beta (m_chosen - m_rejected) - gamma)`, m the mean log-probability of an answer's tokens."""

    def __init__(self, options: SimpoOptions) -> None:
        self.options = options

    def loss(self, model: nn.Module, batch: Batch, scores: Scores) -> Outcome:
        """The sum over pairs."""
        options, pairs = self.options, Pairs.of(batch)
        log_probs_D = scores.log_probs(model, batch)
        means_D = per_token(log_probs_D, scores.targets(batch))
        chosen, rejected = pairs.sides(means_D)
        losses_P = smoothed(options.beta * (chosen - rejected) - options.gamma, 0.0) - options.alpha * chosen
        return Outcome(loss=pairs.sum(losses_P), measures=pairs.measures(options.beta * means_D, log_probs_D))


@hookimpl
def ft_objectives() -> Iterable[Objective[SimpoOptions]]:
    """Offer the objective."""
    yield Objective(
        name="simpo",
        summary="Simple preference optimisation: mean log-probabilities with a margin, no reference",
        options=SimpoOptions,
        make=Simpo,
        takes="pairs",
    )
