"""Triton kernel of `residual.py`. Imported at its first launch on CUDA."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fitune_plugins.speed.kernels.library import ranks

BLOCK = 1024
"""Numbers of a row that a program adds."""

ROWS = 4
"""Rows of a program, which read the adapter's B once."""


def onto_residual_(y: Tensor, residual: Tensor, low: Tensor | None, up_t: Tensor | None, multiplier: float) -> None:
    """Launch it."""
    rows, columns = y.shape
    rank = ranks(low, up_t)
    low_stride, up_stride = (0, 0) if low is None or up_t is None else (low.stride(0), up_t.stride(0))
    grid = (triton.cdiv(rows, ROWS), triton.cdiv(columns, BLOCK))
    _add[grid](
        y, residual, y if low is None else low, y if up_t is None else up_t, rows, columns,
        y.stride(0), residual.stride(0), low_stride, up_stride, multiplier,
        R=rank, ROWS=ROWS, BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip


@triton.jit
def _add(
    y, residual, low, up_t, rows, columns,
    y_stride, residual_stride, low_stride, up_stride, multiplier,
    R: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    inside = (row[:, None] < rows) & (at[None, :] < columns)
    mine = tl.load(y + row[:, None] * y_stride + at[None, :], mask=inside, other=0.0).to(tl.float32)
    for rank in tl.static_range(R):
        weight = tl.load(up_t + rank * up_stride + at, mask=at < columns, other=0.0).to(tl.float32)
        part = tl.load(low + row * low_stride + rank, mask=row < rows, other=0.0).to(tl.float32)
        mine += part[:, None] * weight[None, :]
    base = tl.load(residual + row[:, None] * residual_stride + at[None, :], mask=inside, other=0.0).to(tl.float32)
    made = base + multiplier * mine
    tl.store(y + row[:, None] * y_stride + at[None, :], made.to(y.dtype.element_ty), mask=inside)
