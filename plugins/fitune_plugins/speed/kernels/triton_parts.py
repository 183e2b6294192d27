"""What the Triton kernels share: low-rank parts, norms, activations, and how launches are sized.

All are launched with `enable_fp_fusion=False`: what is rounded between a product and a sum does not hang on what stands
around it, so that a result made again in the backward direction is the forward's, to the bit. And none keeps anything
in global memory between two looks at it: Triton sets barriers for shared memory alone, and threads that read what
others of their program have stored may find what was there before.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

ROWS, COLS, WARPS = 2, 1024, 4
"""Of a program that takes a block: 8 neighbours in each of its rows a thread, which are 16 bytes in the half types."""


def block(width: int) -> int:
    """The power of two that holds `width` columns."""
    return 1 << max(0, width - 1).bit_length()


def cdiv(count: int, size: int) -> int:
    """Blocks of `size` that hold `count`."""
    return -(-count // size)


def stride(x: Tensor | None) -> int:
    """From row to row of a matrix; nothing for one that is not there."""
    return 0 if x is None else x.stride(0)


@triton.jit
def place(M, ROWS: tl.constexpr, COLS: tl.constexpr):
    """A program's rows and columns. Those that run at one time have the same columns, for low-rank parts' sake."""
    down = tl.cdiv(M, ROWS)
    rows = (tl.program_id(0) % down).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    return rows, (tl.program_id(0) // down) * COLS + tl.arange(0, COLS)


@triton.jit
def add_low(
    acc, low, low_stride, up, up_stride, rows, rows_in, cols, cols_in, R: tl.constexpr, EACH: tl.constexpr = False
):
    """`acc [rows, cols] + low [rows, R] @ up [R, cols]`, in float32.

    Columns of `up` are read once for all rows of a thread. That takes 8 columns a thread, to be read as 16 bytes; with
    `EACH` they are read for each row, for blocks of fewer columns.
    """
    for rank in tl.static_range(R):
        left = tl.load(low + rows * low_stride + rank, mask=rows_in, other=0.0).to(tl.float32)
        if EACH:
            at = tl.broadcast_to((up + rank * up_stride + cols)[None, :], acc.shape)
            right = tl.load(at, mask=tl.broadcast_to(cols_in[None, :], acc.shape), other=0.0).to(tl.float32)
        else:
            right = tl.load(up + rank * up_stride + cols, mask=cols_in, other=0.0).to(tl.float32)
            right = tl.broadcast_to(right[None, :], acc.shape)
        acc = tl.fma(tl.broadcast_to(left[:, None], acc.shape), right, acc)
    return acc


@triton.jit
def load_weight(weight, cols, cols_in, UNIT_OFFSET: tl.constexpr):
    """The weight of a norm, in float32."""
    gain = tl.load(weight + cols, mask=cols_in, other=0.0).to(tl.float32)
    if UNIT_OFFSET:
        gain += 1.0
    return gain


@triton.jit
def weigh(scaled, gain, dtype: tl.constexpr, ROUND_FIRST: tl.constexpr):
    """A norm's result from `x / rms` [rows, cols] and its weight [cols]."""
    if ROUND_FIRST:
        scaled = scaled.to(dtype).to(tl.float32)
    return (scaled * gain[None, :]).to(dtype)


@triton.jit
def activate(x, ACT: tl.constexpr):
    """The activation of x, and its derivative (which costs nothing where it is not used)."""
    if ACT == "silu":
        s = tl.sigmoid(x)
        value = x * s
        slope = s * (1.0 + x * (1.0 - s))
    elif ACT == "gelu_tanh":  # 0.5 (1 + tanh(u)) = sigmoid(2 u)
        s = tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
        value = x * s
        slope = s + x * s * (1.0 - s) * (1.5957691216057308 * (1.0 + 0.134145 * x * x))
    else:
        s = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
        value = x * s
        slope = s + x * tl.exp(-0.5 * x * x) * 0.3989422804014327
    return value, slope
