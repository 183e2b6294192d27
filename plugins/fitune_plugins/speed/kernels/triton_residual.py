"""A linear's result onto the residual on CUDA: a program takes a block of rows and columns."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fitune_plugins.speed.kernels.library import ranks
from fitune_plugins.speed.kernels.triton_parts import COLS, ROWS, WARPS, add_low, cdiv, place, stride


@triton.jit
def _onto_residual(
    y,
    residual,
    low,
    up,
    M,
    WIDTH,
    y_stride,
    residual_stride,
    low_stride,
    up_stride,
    multiplier,
    R: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    rows, cols = place(M, ROWS, COLS)
    rows_in, cols_in = rows < M, cols < WIDTH
    inside = rows_in[:, None] & cols_in[None, :]
    at = y + rows[:, None] * y_stride + cols[None, :]
    values = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    base = tl.load(residual + rows[:, None] * residual_stride + cols[None, :], mask=inside, other=0.0).to(tl.float32)
    values = add_low(values, low, low_stride, up, up_stride, rows, rows_in, cols, cols_in, R)
    tl.store(at, (base + multiplier * values).to(y.dtype.element_ty), mask=inside)


def onto_residual_(y: Tensor, residual: Tensor, low: Tensor | None, up_t: Tensor | None, multiplier: float) -> None:
    """Launch of `fitune::onto_residual_`."""
    M, width = y.shape
    R = ranks(low, up_t)
    if M == 0:
        return
    _onto_residual[(cdiv(M, ROWS) * cdiv(width, COLS),)](
        *(y, residual, low, up_t, M, width, y.stride(0), residual.stride(0), stride(low), stride(up_t), multiplier),
        *(R, ROWS, COLS),
        num_warps=WARPS,
        enable_fp_fusion=False,
    )
