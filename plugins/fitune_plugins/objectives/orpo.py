"""Objective `orpo`: odds ratio preference optimisation (Hong et al., arXiv 2403.07691, equations 5 to 7)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from fitune import Batch, Objective, Outcome, Scores, hookimpl
from fitune_plugins.objectives.pairs import OfPairs, Pairs, per_token

if TYPE_CHECKING:
    from torch import Tensor, nn

LARGEST = -1e-6
"""Highest mean log-probability whose odds are taken: those of a certain answer are without end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OrpoOptions:
    """Options of the objective `orpo`."""

    beta: Annotated[float, Ge(0)] = 0.1
    """Weight of the odds ratio beside the chosen answer's cross-entropy; lambda in the paper."""


class Orpo(OfPairs):
    """The cross-entropy a token of the chosen answer, and `-beta log sigmoid` of the logarithm of both answers' odds
    ratio; probabilities are a token's, the geometric mean.
    """

    def __init__(self, options: OrpoOptions) -> None:
        self.options = options

    def loss(self, model: nn.Module, batch: Batch, scores: Scores) -> Outcome:
        """The sum over pairs."""
        import torch.nn.functional as F

        beta, pairs = self.options.beta, Pairs.of(batch)
        log_probs_D = scores.log_probs(model, batch)
        means_D = per_token(log_probs_D, scores.targets(batch))
        chosen, rejected = pairs.sides(means_D, fill=-1.0)
        ratio_P = _log_odds(chosen) - _log_odds(rejected)
        losses_P = -chosen - beta * F.logsigmoid(ratio_P)
        return Outcome(loss=pairs.sum(losses_P), measures=pairs.measures(beta * means_D, log_probs_D))


def _log_odds(log_probs: Tensor) -> Tensor:
    """`log(p / (1 - p))`."""
    import torch

    below = log_probs.clamp(max=LARGEST)
    return below - torch.log(-torch.expm1(below))


@hookimpl
def ft_objectives() -> Iterable[Objective[OrpoOptions]]:
    """Offer the objective."""
    yield Objective(
        name="orpo",
        summary="Odds ratio preference optimisation: preference and fine-tuning at once, without a reference",
        options=OrpoOptions,
        make=Orpo,
        takes="pairs",
    )
