"""torch's AdamW, one master at a time, as `step-in-backward` has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class AdamWInBackward:
    """Steps each master of an AdamW by its gradient, and forgets that (`fitune.GradientOwner`).

    Where the kernel is fused, what is not finite is told to it by a number on the device, which nobody waits for; where
    it is not, it is on the host anyway.
    """

    _scale: Tensor
    """What gradients are multiplied by, float32; like those below it is of one step, and made as it begins."""
    _found: Tensor
    """1 from where on something was not finite, else 0, float32."""
    _changed: Tensor
    """How many masters were changed, float32."""

    def __init__(self, masters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        self.masters = masters
        self._optimizer = optimizer
        self._one: Any = torch.optim.AdamW([masters[0]], fused=bool(optimizer.param_groups[0]["fused"]))
        """The same optimizer, of one master after the other."""
        self._groups: dict[int, dict[str, Any]] = {}
        self._norms: dict[int, Tensor] = {}

    @property
    def _fused(self) -> bool:
        return bool(self._optimizer.param_groups[0]["fused"])

    def begin(self, loss: Tensor, units: float) -> None:
        """Begin a step: learning rates, and what a checkpoint has brought, are looked up anew."""
        self._one.state = self._optimizer.state
        self._groups = {id(p): group for group in self._optimizer.param_groups for p in group["params"]}
        self._norms = {}
        self._scale = torch.full((), 1 / units, dtype=torch.float32, device=loss.device)
        self._found = (~torch.isfinite(loss)).float()
        self._changed = torch.zeros_like(self._found)

    @torch.no_grad()
    def take(self, master: nn.Parameter, gradient: Tensor) -> None:
        """Divide it, look whether it is finite, and step."""
        gradient = gradient.to(master.dtype)
        (norm,) = torch._foreach_norm([gradient], 2, dtype=torch.float32)
        self._norms[id(master)] = norm
        self._found = torch.maximum(self._found, (~torch.isfinite(norm)).float())
        torch._foreach_mul_([gradient], self._scale)
        if self._fused:
            self._one.found_inf = self._found
        elif self._found.item():
            return
        master.grad = gradient
        self._one.param_groups = [{**self._groups[id(master)], "params": [master]}]
        try:
            self._one.step()
        finally:
            master.grad = None
        self._changed = self._changed + (1 - self._found)

    def norms(self) -> Tensor:
        """Of the gradients of this step."""
        return torch.stack([self._norms[id(master)] for master in self.masters])

    def changed(self) -> int:
        """How many masters were changed; waits for the device."""
        return int(self._changed.item())
