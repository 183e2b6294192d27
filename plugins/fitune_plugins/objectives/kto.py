"""Objective `kto`: Kahneman-Tversky optimisation of single answers, each said to be good or bad (Ethayarajh et al.,
arXiv 2402.01306, equation 8).

Shapes: D documents of all rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Gt

from fitune import Batch, Criterion, Example, Objective, Outcome, Problem, Scores, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

ROLE, DESIRABLE, UNDESIRABLE, MISMATCHED = "role", 1.0, -1.0, 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class KtoOptions:
    """Options of the objective `kto`."""

    beta: Annotated[float, Gt(0)] = 0.1
    """How soon a gain or a loss no longer counts for more; the smaller, the further the model may go."""
    desirable: Annotated[float, Ge(0)] = 1.0
    """Weight of good answers. The paper asks for weights times numbers of good and of bad ones in a ratio of 1 to 4/3.
    """
    undesirable: Annotated[float, Ge(0)] = 1.0
    """Weight of bad answers."""


class Kto(Criterion):
    """`1 - sigmoid(beta (d - z))` of a good answer, `1 - sigmoid(beta (z - d))` of a bad one, each with its weight.

    d is the log-probability of an answer less its reference's; z, how far the model has gone on the whole, is the mean
    of d over the micro-batch's prompts with other rows' answers, or 0, without a gradient. So the rows of a micro-batch
    say a little of each other's loss: with a `[train] micro_batch` of 1, z is one answer's.
    """

    measures = (
        "accuracy", "kl", "rewards/chosen", "rewards/rejected", "log_probs/chosen", "log_probs/rejected",
    )  # fmt: skip

    def __init__(self, options: KtoOptions) -> None:
        self.options = options

    def units(self, example: Example) -> int:
        """Its answers."""
        return sum(role in (DESIRABLE, UNDESIRABLE) for role in example.extras[ROLE])

    def loss(self, model: nn.Module, batch: Batch, scores: Scores) -> Outcome:
        """The sum over answers."""
        import torch

        options, role_D = self.options, batch.extras[ROLE]
        good_D, bad_D, other_D = (role_D == role for role in (DESIRABLE, UNDESIRABLE, MISMATCHED))
        reference_D = scores.reference(model, batch)
        log_probs_D = scores.log_probs(model, batch)
        gains_D = log_probs_D - reference_D
        apart, number = _sum(gains_D.detach(), other_D), other_D.float().sum()
        kl = (apart / number.clamp(min=1)).clamp(min=0)
        of_good_D = options.desirable * torch.sigmoid(options.beta * (kl - gains_D))  # 1 - sigmoid(x) is sigmoid(-x)
        of_bad_D = options.undesirable * torch.sigmoid(options.beta * (gains_D - kl))
        return Outcome(
            loss=_sum(of_good_D, good_D) + _sum(of_bad_D, bad_D),
            measures={
                "accuracy": (_right(gains_D.detach() - kl, good_D, bad_D), (good_D | bad_D).float().sum()),
                "kl": (kl * number, number),
                **_means("rewards", options.beta * gains_D.detach(), good_D, bad_D),
                **_means("log_probs", log_probs_D.detach(), good_D, bad_D),
            },
        )


def _sum(values_D: Tensor, mask_D: Tensor) -> Tensor:
    import torch

    return torch.where(mask_D, values_D, 0.0).sum()


def _right(above_D: Tensor, good_D: Tensor, bad_D: Tensor) -> Tensor:
    """How many answers the model takes for what they are said to be; half of those of which it says nothing."""
    sign_D = above_D.sign()
    return _sum(0.5 + 0.5 * sign_D, good_D) + _sum(0.5 - 0.5 * sign_D, bad_D)


def _means(what: str, values_D: Tensor, good_D: Tensor, bad_D: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    sides = (("chosen", good_D), ("rejected", bad_D))
    return {f"{what}/{name}": (_sum(values_D, mask_D), mask_D.float().sum()) for name, mask_D in sides}


def _check(options: KtoOptions) -> Iterable[Problem]:
    if not options.desirable and not options.undesirable:
        what = '"desirable" and "undesirable" are both 0, so that no answer counts'
        yield Problem(key="desirable", what=what, fix="Give one of them a weight")


@hookimpl
def ft_objectives() -> Iterable[Objective[KtoOptions]]:
    """Offer the objective."""
    yield Objective(
        name="kto",
        summary="Kahneman-Tversky optimisation: single answers, each said to be good or bad, beside a reference",
        options=KtoOptions,
        make=Kto,
        takes="labelled",
        needs_reference=lambda options: True,
        check=_check,
    )
