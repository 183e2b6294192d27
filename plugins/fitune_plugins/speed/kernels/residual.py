"""A linear's result added onto the residual, its adapter's part with it."""

from __future__ import annotations

from torch import Tensor

from fitune_plugins.speed.kernels.library import operation, ranks, wide, with_low


def onto_residual_(
    y: Tensor, residual: Tensor, low: Tensor | None, up_t: Tensor | None, multiplier: float = 1.0
) -> None:
    """Make `y [M, N]` into `residual [M, N] + multiplier * (y + low [M, R] @ up_t [R, N])`, rounded once."""
    _onto_residual_(y, residual, low, up_t, multiplier)


def _cpu(y: Tensor, residual: Tensor, low: Tensor | None, up_t: Tensor | None, multiplier: float) -> None:
    ranks(low, up_t)
    y.copy_(wide(residual) + multiplier * with_low(y, low, up_t))


def _meta(y: Tensor, residual: Tensor, low: Tensor | None, up_t: Tensor | None, multiplier: float) -> None:
    pass


_onto_residual_ = operation(
    "onto_residual_(Tensor(a!) y, Tensor residual, Tensor? low, Tensor? up_t, float multiplier) -> ()",
    cpu=_cpu,
    meta=_meta,
    cuda="triton_residual.onto_residual_",
)
