"""Memory strategy `lion`: the sign of a mean of gradients, with one moment, in float32 or bfloat16.

Chen et al., "Symbolic Discovery of Optimization Algorithms", arXiv 2302.06675. Its updates are all of one size, so that
it wants a learning rate of a third to a tenth of AdamW's, and a weight decay larger by as much.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Lt

from fitune import MemoryStrategy, OptimizerSettings, Problem, Recipe, Strategy, hookimpl
from fitune_plugins.memory.optimizers import without_effect

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class LionOptions:
    """Options of the strategy `lion`."""

    beta1: Annotated[float, Ge(0), Lt(1)] = 0.9
    """How much the mean counts beside the newest gradient, in an update."""
    beta2: Annotated[float, Ge(0), Lt(1)] = 0.99
    """Decay of the mean of gradients."""
    state: Literal["float32", "bfloat16"] = "float32"
    """What the mean is kept in: 4 bytes a number that trains, or 2, where AdamW keeps 8."""


@dataclass(frozen=True, slots=True)
class Lion(Strategy):
    """Makes the optimizer."""

    options: LionOptions

    def make_optimizer(self, parameters: Sequence[nn.Parameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
        """Make it, with the groups that AdamW has otherwise."""
        import torch

        from fitune_plugins.memory.lion_optimizer import LionOptimizer

        return LionOptimizer(
            parameters,
            learning_rate=settings.learning_rate,
            betas=(self.options.beta1, self.options.beta2),
            weight_decay=settings.weight_decay,
            dtype=torch.float32 if self.options.state == "float32" else torch.bfloat16,
        )


@hookimpl
def ft_check(recipe: Recipe) -> Iterable[Problem]:
    """Refuse what AdamW alone has; its betas have others' defaults, and stand in the strategy's own table."""
    yield from without_effect(recipe, LionOptions, "beta1", "beta2", "epsilon")


@hookimpl
def ft_memory_strategies() -> Iterable[MemoryStrategy[LionOptions]]:
    """Offer the strategy."""
    yield MemoryStrategy(
        name="lion",
        summary="Lion: updates by sign, with one moment of 4 bytes a number that trains, or of 2, not 8",
        exact=False,
        makes=("optimizer",),
        options=LionOptions,
        make=Lion,
    )
