"""What the host takes to launch operations, forward and backward, and to look at lists of tensors in an optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fitune.memory.cards.bench_clock import Clock

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LAYERS = 30

FORWARD, BACKWARD = 4, 6
"""Operations of a layer below: a product, `silu`, a product by elements and a sum; and of its backward pass, in which
gradients of one tensor meet twice."""

TENSORS = 400

LISTS = 10
"""Lists of all tensors that an optimizer's step is given here: six of AdamW's, and those of a norm, of a product and of
a copy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRates:
    """Seconds of the host."""

    forward: float
    backward: float
    listed: float


def host_rates(device: torch.device, clock: Clock) -> HostRates:
    """Measure them, on tensors so small that the card waits for the host."""
    import torch
    from torch import nn
    from torch.nn import functional

    layers = [nn.Linear(64, 64, bias=False, device=device).requires_grad_(False) for _ in range(LAYERS)]
    hidden = torch.randn(8, 64, device=device, requires_grad=True)

    def forward() -> Tensor:
        at: Tensor = hidden
        for layer in layers:
            at = at + functional.silu(layer(at)) * at
        return at

    both = clock.on_host(lambda: torch.autograd.grad(forward().sum(), hidden))
    alone = clock.on_host(forward)
    listed = clock.on_host(_optimizer(device))
    return HostRates(
        forward=alone / (FORWARD * LAYERS),
        backward=max(both - alone, alone / 10) / (BACKWARD * LAYERS),
        listed=listed / (LISTS * TENSORS),
    )


def _optimizer(device: torch.device) -> Step:
    """A step on as many tensors as an adapter has, but for its arithmetic."""
    import torch
    from torch import nn

    parameters = [nn.Parameter(torch.randn(4, 4, device=device)) for _ in range(TENSORS)]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    published = [parameter.detach().bfloat16() for parameter in parameters]
    return Step(parameters, published, torch.optim.AdamW(parameters, lr=1e-4, fused=True))


class Step:
    """Clips, steps and publishes, as a run does once a step."""

    def __init__(
        self, parameters: list[torch.nn.Parameter], published: list[Tensor], optimizer: torch.optim.Optimizer
    ) -> None:
        self._parameters, self._published, self._optimizer = parameters, published, optimizer

    def __call__(self) -> None:
        """Make it."""
        import torch

        grads = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads, 2)))
        torch._foreach_mul_(grads, torch.clamp(1 / (norm + 1e-6), max=1.0))
        self._optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(self._published, [parameter.detach() for parameter in self._parameters])
