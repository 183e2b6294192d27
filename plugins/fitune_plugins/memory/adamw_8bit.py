"""Memory strategy `adamw-8bit`: AdamW whose two moments are kept in 8 bits, by bitsandbytes.

Dettmers et al., "8-bit optimizers via block-wise quantization", arXiv 2110.02861. Its state takes 2.03 bytes for each
parameter that trains in place of 8: a scale of 4 bytes stands for 256 numbers. Parameters of fewer than 4096 elements
keep theirs in 32 bits. Float32 masters and gradients stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

from fitune import Fit, MemoryStrategy, OptimizerSettings, Plan, RunError, Strategy, hookimpl
from fitune_plugins.loaders.bitsandbytes_layers import check_bitsandbytes, stand_in

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

PAGED = 100_000
"""Elements from which on bitsandbytes pages a parameter's state (`Optimizer8bit.get_state_buffer`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamW8bitOptions:
    """Options of the strategy `adamw-8bit`."""

    paged: bool = False
    """Whether the driver may move the state to the host where a GPU runs out of memory, and back for each step. Of
    parameters of 100,000 elements and more; needs a GPU."""


@dataclass(frozen=True, slots=True)
class AdamW8bit(Strategy):
    """Makes the optimizer."""

    options: AdamW8bitOptions

    def plan(self, plan: Plan) -> Plan:
        """Raise `RunError` where there is no GPU to page from."""
        if self.options.paged and not plan.gpu:
            raise RunError("adamw-8bit: paged = true needs a GPU, and there is none here. Remove it")
        return plan

    def make_optimizer(self, parameters: Sequence[nn.Parameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
        """Make it, with the groups that AdamW has otherwise."""
        shapes_alone = any(p.is_meta for p in parameters)
        if shapes_alone:
            stand_in()
        from bitsandbytes.optim import adamw

        from fitune import decay_groups
        from fitune_plugins.memory.paged_adamw import PagedAdamW8bit

        kind = PagedAdamW8bit if self.options.paged and not shapes_alone else adamw.AdamW8bit
        optimizer = kind(
            decay_groups(parameters),
            lr=settings.learning_rate,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
        )
        if self.options.paged and shapes_alone:
            optimizer.__dict__["get_state_buffer"] = partial(_state, optimizer.get_state_buffer)
        return cast("torch.optim.Optimizer", optimizer)


def _state(on_card: Callable[..., Tensor], p: Tensor, dtype: torch.dtype) -> Tensor:
    """State without values. Paged state is CUDA managed memory, which gives way to what torch's allocator asks for."""
    import torch

    if p.numel() < PAGED:
        return on_card(p, dtype=dtype)
    state = torch.zeros((), dtype=dtype, device="cpu").expand(p.shape)
    state.__dict__["is_paged"] = True  # as bitsandbytes marks its own
    return state


@hookimpl
def ft_memory_strategies() -> Iterable[MemoryStrategy[AdamW8bitOptions]]:
    """Offer the strategy."""
    yield MemoryStrategy(
        name="adamw-8bit",
        summary="AdamW with 8-bit state (bitsandbytes): 2 bytes a parameter, not 8, in tensors of 4096 and more",
        exact=False,
        makes=("optimizer",),
        fit=Fit(asked=True, settings=({}, {"paged": True})),
        options=AdamW8bitOptions,
        make=AdamW8bit,
        check=check_bitsandbytes,
    )
