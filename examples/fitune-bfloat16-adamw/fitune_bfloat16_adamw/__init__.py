"""Memory strategy `bfloat16-adamw`: AdamW (arXiv 1711.05101) whose means of gradients are kept in bfloat16."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fitune import MemoryStrategy, OptimizerSettings, Strategy, decay_groups, hookimpl

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


@dataclass(frozen=True, slots=True, kw_only=True)
class BFloat16AdamWOptions:
    """Options of the strategy `bfloat16-adamw`."""

    nesterov: bool = False
    """Look a step ahead along the mean, as NAdam does."""


@dataclass(frozen=True, slots=True)
class BFloat16AdamW(Strategy):
    """Makes the optimizer."""

    options: BFloat16AdamWOptions

    def make_optimizer(self, parameters: Sequence[nn.Parameter], settings: OptimizerSettings) -> Optimizer:
        """Give one of these float32 parameters, with the groups that AdamW has otherwise."""
        from fitune_bfloat16_adamw.optimizer import MeansInBFloat16  # with torch: listing plugins stays instant

        return MeansInBFloat16(decay_groups(parameters), settings, nesterov=self.options.nesterov)


@hookimpl
def ft_memory_strategies() -> Iterable[MemoryStrategy[BFloat16AdamWOptions]]:
    """Offer the strategy."""
    yield MemoryStrategy(
        name="bfloat16-adamw",
        summary="AdamW whose means are kept in bfloat16: 6 bytes of state a parameter, not 8",
        options=BFloat16AdamWOptions,
        make=BFloat16AdamW,
        exact=False,
        makes=("optimizer",),
    )
