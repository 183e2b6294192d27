"""What stands for bitsandbytes' AdamW in 8 bits where that is not installed: its state as a forecast sees it.

Two moments of a byte an element, each with a float32 scale for 256 of them, and two tables that all share; in tensors
of fewer than 4096 elements, moments in float32 (Dettmers et al., arXiv 2110.02861; the order is bitsandbytes 0.50's).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

BLOCK, SMALLEST = 256, 4096
"""Elements that share a scale, and elements from which on a tensor's moments are quantised."""

OPERATIONS = {
    "optimizer_update_32bit": (
        "(str optimizer_name, Tensor(a0!) g, Tensor(a1!) p, Tensor(a2!) state1, Tensor(a3!)? state2, "
        "Tensor(a4!)? unorm_vec, float max_unorm, float param_norm, float beta1, float beta2, float beta3, "
        "float alpha, float eps, float weight_decay, int step, float lr, float gnorm_scale, "
        "bool skip_zeros=False) -> ()"
    ),
    "optimizer_update_8bit_blockwise": (
        "(str optimizer_name, Tensor(a0!) g, Tensor(a1!) p, Tensor(a2!) state1, Tensor(a3!)? state2, float beta1, "
        "float beta2, float beta3, float alpha, float eps, int step, float lr, Tensor(a4!) qmap1, Tensor(a5!)? qmap2, "
        "Tensor(a6!) absmax1, Tensor(a7!)? absmax2, float weight_decay, float gnorm_scale, bool skip_zeros=False) -> ()"
    ),
}


class AdamW8bit(torch.optim.Optimizer):
    """Its state, and the operations that change it."""

    def __init__(
        self, params: Iterable[Any], lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        """As the strategy `adamw-8bit` makes it."""
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._tables: dict[str, Tensor] = {}

    def get_state_buffer(self, p: Tensor, dtype: torch.dtype) -> Tensor:
        """Room for a moment of a parameter."""
        return torch.zeros_like(p, dtype=dtype)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    if not state:
                        self._begin(parameter, state)
                    state["step"] += 1
                    _update(group, parameter, state)

    def _begin(self, parameter: Tensor, state: dict[str, Any]) -> None:
        state["step"] = 0
        quantised = parameter.numel() >= SMALLEST
        if quantised and not self._tables:
            self._tables = {name: torch.tensor([0.0] * 256).to(parameter.device) for name in ("qmap1", "qmap2")}
        dtype = torch.uint8 if quantised else torch.float32
        for moment in ("state1", "state2"):
            state[moment] = self.get_state_buffer(parameter, dtype=dtype)
        if quantised:
            blocks = -(parameter.numel() // -BLOCK)
            for scales in ("absmax1", "absmax2"):
                state[scales] = torch.zeros(blocks, dtype=torch.float32, device=parameter.device)
            state.update(self._tables)


class PagedAdamW8bit(AdamW8bit):
    """The same, but for where the state is, which the strategy says."""


def _update(group: Mapping[str, Any], parameter: Tensor, state: Mapping[str, Any]) -> None:
    moments, betas, step = (state["state1"], state["state2"]), (*group["betas"], 0.0, 0.0), state["step"]
    given, rate, decay = ("adam", parameter.grad, parameter, *moments), group["lr"], group["weight_decay"]
    if "absmax1" in state:
        tables, scales = (state["qmap1"], state["qmap2"]), (state["absmax1"], state["absmax2"])
        torch.ops.bitsandbytes.optimizer_update_8bit_blockwise.default(
            *given, *betas, group["eps"], step, rate, *tables, *scales, decay, 1.0, False
        )
    else:
        torch.ops.bitsandbytes.optimizer_update_32bit.default(
            *given, None, 0.0, 0.0, *betas, group["eps"], decay, step, rate, 1.0, False
        )
