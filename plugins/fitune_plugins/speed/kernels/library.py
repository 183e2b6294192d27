"""How the fast path's operations become operations of torch.

They are registered by `torch.library.Library`, not by `torch.library.custom_op`, whose checks in Python cost the host
more than 20 microseconds a call: a layer makes a dozen of calls in each direction.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

RANKS = 16
"""Widest low-rank part that kernels add: wider ones are better made by matrix products."""

_LIBRARY = torch.library.Library("fitune", "FRAGMENT")  # lives as long as the process


def operation(
    schema: str,
    *,
    cpu: Callable[..., Any],
    meta: Callable[..., Any],
    cuda: str,
    flops: Callable[..., int] | None = None,
) -> Callable[..., Any]:
    """Register an operation, and give it.

    `schema` is torch's, with the name in front; `cuda` is a module beside this one and its function, imported at the
    first launch; `flops`, of one that is a product of matrices, is its number of operations by the shapes of its
    arguments, as torch's counter asks for it (and with it the forecast of a step's time). A second copy of this package
    in one process gets the first's operation.
    """
    name = schema.partition("(")[0]
    if not hasattr(torch.ops.fitune, name):
        _LIBRARY.define(schema)
        _LIBRARY.impl(name, cpu, "CPU")
        _LIBRARY.impl(name, meta, "Meta")
        _LIBRARY.impl(name, _Launch(cuda), "CUDA")
        if flops is not None:
            register_flop_formula(getattr(torch.ops.fitune, name))(flops)
    packet: Any = getattr(torch.ops.fitune, name)
    return packet.default  # type: ignore[no-any-return]  # no resolution of overloads at each call


def launches_on(device: torch.device) -> bool:
    """Whether kernels can be launched there: a GPU needs triton, which torch brings along on Linux alone. A forecast
    takes it that the card's machine has it, unless this one has a torch for GPUs without.
    """
    needs_it = device.type == "cuda" or (device.type == "meta" and torch.version.cuda is not None)
    return not needs_it or importlib.util.find_spec("triton") is not None


class _Launch:
    """Calls a launcher of Triton's, with the tensors' device as the current one: Triton launches on that."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.launch: Callable[..., Any] | None = None

    def __call__(self, first: Tensor, *rest: Any) -> Any:
        if self.launch is None:
            module, _, name = self.where.partition(".")
            self.launch = getattr(importlib.import_module(f"{__package__}.{module}"), name)
        index = first.get_device()
        if index == torch.cuda.current_device():
            return self.launch(first, *rest)
        with torch.cuda.device(index):
            return self.launch(first, *rest)


def wide(x: Tensor) -> Tensor:
    """In the type that is computed in: float64 for float64, else float32."""
    return x if x.dtype == torch.float64 else x.float()


def with_low(x: Tensor, low: Tensor | None, up_t: Tensor | None) -> Tensor:
    """`x [M, N] + low [M, R] @ up_t [R, N]`, in the wide type and not rounded."""
    if not ranks(low, up_t):
        return wide(x)
    assert low is not None
    assert up_t is not None
    return wide(x) + wide(low) @ wide(up_t)


def ranks(low: Tensor | None, up_t: Tensor | None) -> int:
    """R of a low-rank part, 0 for None. Raises `ValueError` if the kernels cannot add it."""
    if low is None or up_t is None:
        if low is not up_t:
            raise ValueError("fitune: one half of a low-rank part is missing")
        return 0
    if low.shape[1] != up_t.shape[0] or low.shape[1] > RANKS:
        raise ValueError(
            f"fitune: low-rank parts of {low.shape[1]} and {up_t.shape[0]} ranks; at most {RANKS}, the same"
        )
    return low.shape[1]
