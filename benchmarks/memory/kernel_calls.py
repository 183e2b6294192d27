"""How a case of `kernels.py` calls a function, alone or with its backward pass, on tensors of the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from kernel_attention import BF16, Case, Steps

Tensors = tuple[torch.Tensor, ...]
Make = Callable[[str], Tensors]


def normal(*shapes: tuple[int, ...], dtype: torch.dtype = BF16, grad: bool = False) -> Make:
    """A maker of random tensors."""
    return lambda device: tuple(torch.randn(s, device=device, dtype=dtype, requires_grad=grad) for s in shapes)


def call(make: Make, function: Callable[..., Any], label: str = "forward") -> Case:
    """One call, without a graph."""

    def run(device: str) -> Steps:
        tensors = make(device)
        yield label, lambda: function(*tensors)

    return run


def both(make: Make, function: Callable[..., torch.Tensor]) -> Case:
    """A function and its backward through autograd; what the graph keeps counts as live."""

    def run(device: str) -> Steps:
        tensors = make(device)
        leaves = [tensor for tensor in tensors if tensor.requires_grad]

        def forward() -> torch.Tensor:
            with torch.enable_grad():
                return function(*tensors)

        out = yield "forward", forward
        slope = torch.ones_like(out)
        yield "backward", lambda: torch.autograd.grad(out, leaves, slope)

    return run


def pair(make: Make, forward: Callable[..., Any], backward: Callable[..., Any]) -> Case:
    """An aten op and the aten op of its backward, which is called with (grad, result, *tensors)."""

    def run(device: str) -> Steps:
        tensors = make(device)
        result = yield "forward", lambda: forward(*tensors)
        slope = torch.ones_like(result[0] if isinstance(result, tuple) else result)
        yield "backward", lambda: backward(slope, result, *tensors)

    return run


def with_ids(make: Make, rows: tuple[int, ...], below: int) -> Make:
    """`make`'s tensors and int64 ids."""
    return lambda device: (*make(device), torch.randint(0, below, rows, device=device))
