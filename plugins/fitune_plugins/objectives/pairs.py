"""What objectives of pairs share: which documents of a batch are pairs, and what is measured of them.

Shapes: D documents of all rows, P = D - 1 places between two of them. A pair is a chosen document with the rejected one
right behind it; what is computed for other places is masked, so that no device is asked which they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fitune import Batch, Criterion, Example

if TYPE_CHECKING:
    from torch import Tensor

MEASURES = (
    "accuracy",
    "margin",
    "rewards/chosen",
    "rewards/rejected",
    "log_probs/chosen",
    "log_probs/rejected",
)
"""Of pairs: how often the chosen answer's reward is the higher one, by how much on average, and means of each."""

ROLE, CHOSEN, REJECTED = "role", 1.0, -1.0


@dataclass(frozen=True, slots=True)
class Pairs:
    """The pairs of a batch."""

    mask: Tensor
    """`[P]`: whether a place is between a chosen document and its rejected one."""

    @classmethod
    def of(cls, batch: Batch) -> Pairs:
        """Those of this batch."""
        role_D = batch.extras[ROLE]
        return cls((role_D[:-1] == CHOSEN) & (role_D[1:] == REJECTED))

    def sides(self, values_D: Tensor, fill: float = 0.0) -> tuple[Tensor, Tensor]:
        """Values of the chosen and of the rejected documents, `[P]` each, `fill` where there is no pair."""
        import torch

        return torch.where(self.mask, values_D[:-1], fill), torch.where(self.mask, values_D[1:], fill)

    def sum(self, values_P: Tensor) -> Tensor:
        """The sum over pairs."""
        import torch

        return torch.where(self.mask, values_P, 0.0).sum()

    def measures(self, rewards_D: Tensor, log_probs_D: Tensor | None = None) -> dict[str, tuple[Tensor, Tensor]]:
        """`MEASURES` of what an objective takes for an answer's reward, and of log-probabilities if they are given."""
        number = self.mask.float().sum()
        chosen, rejected = self.sides(rewards_D.detach())
        right = (chosen > rejected).float() + 0.5 * (chosen == rejected).float()  # by chance, where nothing tells
        sums = (
            self.sum(right),
            (chosen - rejected).sum(),
            chosen.sum(),
            rejected.sum(),
            *(() if log_probs_D is None else (side.sum() for side in self.sides(log_probs_D.detach()))),
        )
        return {name: (total, number) for name, total in zip(MEASURES, sums, strict=False)}


class OfPairs(Criterion):
    """An objective whose loss is a mean over pairs."""

    measures: tuple[str, ...] = MEASURES

    def units(self, example: Example) -> int:
        """Its pairs."""
        return example.extras[ROLE].count(CHOSEN)


def per_token(log_probs_D: Tensor, targets_D: Tensor) -> Tensor:
    """Means over each document's target tokens; 0 for one that has none."""
    return log_probs_D / targets_D.clamp(min=1)


def smoothed(logits_P: Tensor, smoothing: float) -> Tensor:
    """The loss of a preference that is so likely the other way round: conservative DPO (Mitchell, 2023,
    https://ericmitchell.ai/cdpo.pdf); 0 for `-log sigmoid`.
    """
    import torch.nn.functional as F

    losses_P = -F.logsigmoid(logits_P)
    return losses_P if not smoothing else (1 - smoothing) * losses_P - smoothing * F.logsigmoid(-logits_P)
