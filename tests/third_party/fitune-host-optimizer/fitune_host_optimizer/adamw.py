"""AdamW (arXiv 1711.05101) with its state on the host; in float32 it makes torch's own operations, in their order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor


class HostAdamW(torch.optim.Optimizer):
    """Copies a parameter and its gradient to the host, updates there, and copies the parameter back."""

    def __init__(
        self,
        params: Any,
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        mean_dtype: torch.dtype = torch.float32,
        pinned: bool = False,
    ) -> None:
        self.mean_dtype = mean_dtype
        self.pinned = pinned
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make one step; gives the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; torch moves it to the parameters' device and type, so it is moved back."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state["mean"] = state["mean"].to("cpu", self.mean_dtype)
            state["square"] = state["square"].to("cpu", torch.float32)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["mean"] = torch.zeros(parameter.shape, dtype=self.mean_dtype)
            state["square"] = torch.zeros(parameter.shape)
        assert parameter.grad is not None
        weight, gradient = self._on_host(parameter), self._on_host(parameter.grad)
        beta1, beta2 = group["betas"]
        state["step"] += 1
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        mean = state["mean"].float().lerp_(gradient, 1 - beta1)
        square = state["square"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = square.sqrt().div_((1 - beta2 ** state["step"]) ** 0.5).add_(group["eps"])
        weight.addcdiv_(mean, root, value=-group["lr"] / (1 - beta1 ** state["step"]))
        state["mean"].copy_(mean)
        parameter.copy_(weight)

    def _on_host(self, tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, pin_memory=self.pinned).copy_(tensor)
