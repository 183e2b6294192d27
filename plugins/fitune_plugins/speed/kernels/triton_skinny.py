"""Triton kernel of `skinny.py`. Imported at its first launch on CUDA."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fitune_plugins.speed.kernels.triton_parts import block

ROWS = 16
"""Rows of a program: the fewest that tensor cores take, so that rows of a few thousand tokens fill a card."""

DEPTH = 256
"""Columns of x that a program reads at a time; half of that for more than 16 columns of the result, so that four stages
take 60 KiB of shared memory at most: cards but the largest have 64 to 100 for a program."""


def skinny(x: Tensor, right: Tensor, scaling: float) -> Tensor:
    """Launch it on a new result."""
    out = x.new_empty((x.shape[0], right.shape[0]))
    _launch(out, x, right, scaling, add=False)
    return out


def skinny_(out: Tensor, x: Tensor, right: Tensor, scaling: float) -> None:
    """Launch it on what is there."""
    _launch(out, x, right, scaling, add=True)


def _launch(out: Tensor, x: Tensor, right: Tensor, scaling: float, *, add: bool) -> None:
    rows, depth = x.shape
    wide, columns = x.dtype == torch.float32, block(right.shape[0])
    depth_at_once = 64 if wide else DEPTH if columns <= 16 else DEPTH // 2
    _skinny[(triton.cdiv(rows, ROWS),)](
        out, x, right, rows, depth, out.stride(0), x.stride(0), right.stride(0), scaling,
        P=right.shape[0], COLUMNS=columns, ADD=add, ROWS=ROWS, DEPTH=depth_at_once,
        num_warps=4, num_stages=2 if wide else 4,
    )  # fmt: skip


@triton.jit
def _skinny(
    out, x, right, rows, depth: tl.constexpr, out_stride, x_stride, right_stride, scaling,
    P: tl.constexpr, COLUMNS: tl.constexpr, ADD: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.arange(0, COLUMNS)  # a power of two, where P may be 48
    wanted = column < P
    inside = row < rows
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(0, depth, DEPTH):
        at = start + tl.arange(0, DEPTH)
        there = at < depth
        mine = tl.load(x + row[:, None] * x_stride + at[None, :], mask=inside[:, None] & there[None, :], other=0.0)
        other = tl.load(
            right + column[None, :] * right_stride + at[:, None], mask=there[:, None] & wanted[None, :], other=0.0
        )
        total = tl.dot(mine, other, total, input_precision="ieee")
    total *= scaling
    where = out + row[:, None] * out_stride + column[None, :]
    if ADD:
        total += tl.load(where, mask=inside[:, None] & wanted[None, :], other=0.0).to(tl.float32)
    tl.store(where, total.to(out.dtype.element_ty), mask=inside[:, None] & wanted[None, :])
