"""Memory strategy `adafactor`: squared gradients kept by row and column, by transformers.

Shazeer and Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", arXiv 1804.04235. Of a matrix of
n x m it keeps n + m numbers, where AdamW keeps 2 n m. Its learning rate is the recipe's own, with its schedule, and is
not scaled by the size of the weights: LoRA's B begins at 0, and would hardly move. torch's Adafactor cannot do without
that scale, and waits for the device twice a tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, cast

from annotated_types import Gt, Lt

from fitune import MemoryStrategy, OptimizerSettings, Problem, Recipe, hookimpl
from fitune_plugins.memory.optimizers import OfMatrices, without_effect

if TYPE_CHECKING:
    import torch
    from torch import nn

NAME = "adafactor"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdafactorOptions:
    """Options of the strategy `adafactor`."""

    clip_threshold: Annotated[float, Gt(0)] = 1.0
    """An update whose root mean square is above it is scaled down to it."""
    decay_rate: Annotated[float, Lt(0)] = -0.8
    """In step t, squared gradients of before count 1 - t to this power."""


class Adafactor(OfMatrices):
    """Makes the optimizer."""

    options: AdafactorOptions

    def make_optimizer(self, parameters: Sequence[nn.Parameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
        """Make it, with the groups that AdamW has otherwise. Raises `ModelError` where matrices are shared out."""
        from transformers.optimization import Adafactor as Optimizer

        from fitune import decay_groups

        self.of_model(parameters, NAME)
        optimizer = Optimizer(
            decay_groups(parameters),
            lr=settings.learning_rate,
            clip_threshold=self.options.clip_threshold,
            decay_rate=self.options.decay_rate,
            weight_decay=settings.weight_decay,
            scale_parameter=False,
            relative_step=False,
        )
        return cast("torch.optim.Optimizer", optimizer)


@hookimpl
def ft_check(recipe: Recipe) -> Iterable[Problem]:
    """Refuse what AdamW alone has."""
    yield from without_effect(recipe, AdafactorOptions, "beta1", "beta2", "epsilon")


@hookimpl
def ft_memory_strategies() -> Iterable[MemoryStrategy[AdafactorOptions]]:
    """Offer the strategy."""
    yield MemoryStrategy(
        name=NAME,
        summary="Adafactor (transformers): squared gradients by row and column, next to no optimizer state",
        exact=False,
        makes=("optimizer",),
        options=AdafactorOptions,
        make=Adafactor,
    )
