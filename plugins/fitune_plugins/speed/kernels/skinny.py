"""Products with a matrix of few columns: an adapter's `x A^T`, and the gradient that goes back through its B.

They read much and compute little. cuBLAS cuts them along K to fill a card, with a buffer to be cleared before and a
kernel to add behind; here each program takes a few rows whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fitune_plugins.speed.kernels.library import operation, wide

WIDEST = 64
"""Columns beyond which a product is cuBLAS's."""


def skinny(x: Tensor, right: Tensor, scaling: float) -> Tensor:
    """`scaling * x [M, K] @ right [P, K]^T`, `[M, P]`, rounded once. P is a multiple of 16, and 64 at most."""
    return _skinny(x, right, scaling)  # type: ignore[no-any-return]


def skinny_(out: Tensor, x: Tensor, right: Tensor, scaling: float) -> None:
    """Add the same onto `out [M, P]`."""
    _skinny_(out, x, right, scaling)


def _cpu(x: Tensor, right: Tensor, scaling: float) -> Tensor:
    return (wide(x) @ wide(right).t()).mul_(scaling).to(x.dtype)


def _cpu_(out: Tensor, x: Tensor, right: Tensor, scaling: float) -> None:
    out.copy_(wide(out) + scaling * (wide(x) @ wide(right).t()))


def _meta(x: Tensor, right: Tensor, scaling: float) -> Tensor:
    return x.new_empty((x.shape[0], right.shape[0]))


def _meta_(out: Tensor, x: Tensor, right: Tensor, scaling: float) -> None:
    pass


def _flops(x: Sequence[int], right: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * x[0] * x[1] * right[0]


def _flops_(out: Sequence[int], x: Sequence[int], right: Sequence[int], *_: Any, **__: Any) -> int:
    return _flops(x, right)


_skinny = operation(
    "skinny(Tensor x, Tensor right, float scaling) -> Tensor",
    cpu=_cpu,
    meta=_meta,
    cuda="triton_skinny.skinny",
    flops=_flops,
)
_skinny_ = operation(
    "skinny_(Tensor(a!) out, Tensor x, Tensor right, float scaling) -> ()",
    cpu=_cpu_,
    meta=_meta_,
    cuda="triton_skinny.skinny_",
    flops=_flops_,
)
