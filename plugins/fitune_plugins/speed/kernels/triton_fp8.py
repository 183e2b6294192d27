"""Triton kernels of `fp8.py`. Imported at their first launch on CUDA."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fitune_plugins.speed.kernels.fp8 import LARGEST, SMALLEST

BLOCK = 4096
"""Numbers of a row that a program has at a time: the second look at a longer row comes from the cache."""

TILE = 128
"""Rows and columns of what a program turns over."""


def to_fp8(x: Tensor, columns: Tensor | None) -> tuple[Tensor, Tensor]:
    """Launch it, a row a program."""
    rows, depth = x.shape
    out = x.new_empty((rows, depth), dtype=torch.float8_e4m3fn)
    scale = x.new_empty((rows, 1), dtype=torch.float32)
    block = min(BLOCK, triton.next_power_of_2(depth))
    _to_fp8[(rows,)](
        x, x if columns is None else columns, out, scale, depth, x.stride(0), LARGEST, SMALLEST,
        COLUMNS=columns is not None, BLOCK=block, num_warps=8,
    )  # fmt: skip
    return out, scale


def transposed(x: Tensor) -> Tensor:
    """Launch it."""
    rows, columns = x.shape
    out = x.new_empty((columns, rows))
    grid = (triton.cdiv(rows, TILE), triton.cdiv(columns, TILE))
    _transpose[grid](
        x.view(torch.uint8), out.view(torch.uint8), rows, columns, x.stride(0), out.stride(0), TILE=TILE, num_warps=4
    )
    return out


@triton.jit
def _to_fp8(
    x, columns, out, scale, depth, x_stride, largest, smallest,
    COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    most = tl.zeros((BLOCK,), dtype=tl.float32)
    none = tl.zeros((BLOCK,), dtype=tl.int32)
    for start in range(0, depth, BLOCK):
        at = start + tl.arange(0, BLOCK)
        mine = tl.load(x + row * x_stride + at, mask=at < depth, other=0.0).to(tl.float32)
        if COLUMNS:
            mine *= tl.load(columns + at, mask=at < depth, other=0.0)
        most = tl.maximum(most, tl.abs(mine))
        none += (mine != mine).to(tl.int32)
    by = tl.maximum(tl.max(most, axis=0), smallest) / largest
    by = tl.where(tl.sum(none, axis=0) > 0, float("nan"), by)  # maxima pass over what is no number
    tl.store(scale + row, by)
    for start in range(0, depth, BLOCK):
        at = start + tl.arange(0, BLOCK)
        mine = tl.load(x + row * x_stride + at, mask=at < depth, other=0.0).to(tl.float32)
        if COLUMNS:
            mine *= tl.load(columns + at, mask=at < depth, other=0.0)
        mine = tl.minimum(tl.maximum(mine / by, -largest), largest)
        tl.store(out + row * depth + at, mine.to(out.dtype.element_ty), mask=at < depth)


@triton.jit
def _transpose(x, out, rows, columns, x_stride, out_stride, TILE: tl.constexpr):
    row = (tl.program_id(0) * TILE + tl.arange(0, TILE)).to(tl.int64)
    column = (tl.program_id(1) * TILE + tl.arange(0, TILE)).to(tl.int64)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    tile = tl.load(x + row[:, None] * x_stride + column[None, :], mask=inside)
    turned = (column < columns)[:, None] & (row < rows)[None, :]
    tl.store(out + column[:, None] * out_stride + row[None, :], tl.trans(tile), mask=turned)
