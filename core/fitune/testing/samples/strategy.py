"""Memory strategy `sample`: SGD with momentum in AdamW's place, one number of state a parameter in place of two."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Lt

from fitune import MemoryStrategy, OptimizerSettings, Strategy, hookimpl

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleOptions:
    """Options of the strategy `sample`."""

    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    """How much of the last update is kept in the next."""


@dataclass(frozen=True, slots=True)
class Sample(Strategy):
    """Makes the optimizer."""

    options: SampleOptions

    def make_optimizer(self, parameters: Sequence[nn.Parameter], settings: OptimizerSettings) -> Optimizer:
        """Give one of these float32 parameters."""
        import torch  # here, so that listing plugins stays instant

        return torch.optim.SGD(
            parameters,
            lr=settings.learning_rate,
            momentum=self.options.momentum,
            weight_decay=settings.weight_decay,
        )


@hookimpl
def ft_memory_strategies() -> Iterable[MemoryStrategy[SampleOptions]]:
    """Offer the strategy."""
    yield MemoryStrategy(
        name="sample",
        summary="SGD with momentum in AdamW's place: half of its state",
        options=SampleOptions,
        make=Sample,
        exact=False,
        makes=("optimizer",),
    )
