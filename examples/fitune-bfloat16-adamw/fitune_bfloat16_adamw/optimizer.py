"""AdamW whose means of gradients are kept in bfloat16, and the means of their squares in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fitune import OptimizerSettings


class MeansInBFloat16(torch.optim.Optimizer):
    """AdamW; `state` has of each parameter `step`, `mean` in bfloat16 and `square` in float32."""

    def __init__(self, groups: Any, settings: OptimizerSettings, *, nesterov: bool) -> None:
        defaults = {
            "lr": settings.learning_rate,
            "betas": settings.betas,
            "eps": settings.eps,
            "weight_decay": settings.weight_decay,
            "nesterov": nesterov,
        }
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Change every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, group)

    def _step(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        if not state:
            state["step"] = 0  # a plain number: a tensor's value is not there in a forecast
            state["mean"] = torch.zeros_like(parameter, dtype=torch.bfloat16)
            state["square"] = torch.zeros_like(parameter)
        state["step"] += 1
        gradient = parameter.grad
        assert gradient is not None
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        mean = state["mean"].float().lerp_(gradient, 1 - beta1)
        state["mean"].copy_(mean)
        state["square"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        if group["nesterov"]:
            mean.lerp_(gradient, 1 - beta1)
        root = state["square"].sqrt().div_((1 - beta2 ** state["step"]) ** 0.5).add_(group["eps"])
        parameter.addcdiv_(mean, root, value=-group["lr"] / (1 - beta1 ** state["step"]))

    def load_state_dict(self, state_dict: Any) -> None:
        """Take what was kept; torch casts all of it to the parameters' type, and the means were exact in theirs."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state["mean"] = state["mean"].to(torch.bfloat16)
