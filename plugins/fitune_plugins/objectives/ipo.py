"""Objective `ipo`: identity preference optimisation (Azar et al., arXiv 2310.12036, equation 17)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt

from fitune import Batch, Objective, Outcome, Scores, hookimpl
from fitune_plugins.objectives.pairs import OfPairs, Pairs, per_token

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class IpoOptions:
    """Options of the objective `ipo`."""

    beta: Annotated[float, Gt(0)] = 0.1
    """Half of one over the margin that is aimed at, in nats; tau in the paper."""
    length_normalized: bool = True
    """Whether log-probabilities are taken a token, as the paper's authors say that they are meant
    (https://huggingface.co/blog/pref-tuning); the paper's formula has sums."""


class Ipo(OfPairs):
    """`(d_chosen - d_rejected - 1 / (2 beta))^2`, d the log-probability of an answer less its reference's."""

    def __init__(self, options: IpoOptions) -> None:
        self.options = options

    def loss(self, model: nn.Module, batch: Batch, scores: Scores) -> Outcome:
        """The sum over pairs."""
        beta, pairs = self.options.beta, Pairs.of(batch)
        reference_D = scores.reference(model, batch)
        log_probs_D = scores.log_probs(model, batch)
        gains_D = log_probs_D - reference_D
        if self.options.length_normalized:
            gains_D = per_token(gains_D, scores.targets(batch))
        chosen, rejected = pairs.sides(gains_D)
        losses_P = (chosen - rejected - 1 / (2 * beta)).square()
        return Outcome(loss=pairs.sum(losses_P), measures=pairs.measures(beta * gains_D, log_probs_D))


@hookimpl
def ft_objectives() -> Iterable[Objective[IpoOptions]]:
    """Offer the objective."""
    yield Objective(
        name="ipo",
        summary="Identity preference optimisation: a margin between the answers that is aimed at, and not passed",
        options=IpoOptions,
        make=Ipo,
        takes="pairs",
        needs_reference=lambda options: True,
    )
