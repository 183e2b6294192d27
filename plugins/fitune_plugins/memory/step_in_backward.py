"""Memory strategy `step-in-backward`: AdamW's step of each parameter as its gradient comes, in the backward pass.

No gradient waits for the others: of all of them, which in full fine-tuning take 6 bytes a parameter (bfloat16, and the
float32 sum that the optimizer reads), one stands at a time. Lv et al., "Full Parameter Fine-tuning for Large Language
Models with Limited Resources", arXiv 2306.09782, section 3.1, with AdamW in place of SGD. What is computed is what is
computed without it, to the bit; but gradients cannot be clipped by the norm of all, nor a step be left out when it is
known, and a step is one micro-batch of one process.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fitune import (
    Fit,
    GradientOwner,
    MemoryStrategy,
    NoOptions,
    OptimizerSettings,
    Plan,
    Strategy,
    hookimpl,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

NAME = "step-in-backward"


@dataclass(frozen=True, slots=True)
class StepInBackward(Strategy):
    """Makes AdamW, and takes gradients for it."""

    options: NoOptions

    def plan(self, plan: Plan) -> Plan:
        """Say that no micro-batch can be recorded."""
        return replace(plan, unrecorded=f"{NAME} changes weights within it")

    def make_optimizer(self, parameters: Sequence[nn.Parameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
        """Make the run's own, so that a checkpoint goes on without this strategy too."""
        import torch

        from fitune import decay_groups

        return torch.optim.AdamW(
            decay_groups(parameters),
            lr=settings.learning_rate,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=settings.fused,
        )

    def own_gradients(self, masters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer) -> GradientOwner:
        """Take all of them."""
        from fitune_plugins.memory.adamw_in_backward import AdamWInBackward

        return AdamWInBackward(masters, optimizer)


@hookimpl
def ft_memory_strategies() -> Iterable[MemoryStrategy[NoOptions]]:
    """Offer the strategy."""
    yield MemoryStrategy(
        name=NAME,
        summary="AdamW's step of each parameter as its gradient comes: no others stand beside it; without clipping",
        exact=True,
        makes=("optimizer", "gradients"),
        conflicts_with={
            "fsdp": "it changes weights before the processes' gradients are summed",
            "context-parallel": "it changes weights before the processes' gradients are summed",
        },
        fit=Fit(),
        options=NoOptions,
        make=StepInBackward,
    )
