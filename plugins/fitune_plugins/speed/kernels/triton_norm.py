"""RMSNorm on CUDA: a program takes whole rows, reads each once and writes each once."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fitune_plugins.speed.kernels.library import ranks
from fitune_plugins.speed.kernels.triton_parts import add_low, block, cdiv, load_weight, stride, weigh

FORWARD = 4096
"""Numbers that a program of `norm` holds of each of its tensors, if a row is not longer."""
BACKWARD = 8192
"""The same of `norm_backward`, where a block of the low-rank part's `down` serves all rows of a program."""


def warps_of(width: int) -> int:
    """Warps of a program: 8 numbers a thread at one time, of 4 to 16 warps.

    It follows from the width of a row alone: so a row is summed in the same order wherever it is summed.
    """
    return min(16, max(4, width // 256))


@triton.jit
def _norm(
    x,
    weight,
    out,
    M,
    H,
    x_stride,
    eps,
    UNIT_OFFSET: tl.constexpr,
    ROUND_FIRST: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, COLS)
    inside = (rows < M)[:, None] & (cols < H)[None, :]
    values = tl.load(x + rows[:, None] * x_stride + cols[None, :], mask=inside, other=0.0).to(tl.float32)
    gain = load_weight(weight, cols, cols < H, UNIT_OFFSET)
    rstd = tl.rsqrt(tl.sum(values * values, 1) / H + eps)
    result = weigh(values * rstd[:, None], gain, out.dtype.element_ty, ROUND_FIRST)
    tl.store(out + rows[:, None] * H + cols[None, :], result, mask=inside)


@triton.jit
def _norm_backward(
    dh,
    dlow,
    down,
    x,
    weight,
    dres,
    dx,
    h,
    M,
    H,
    dh_stride,
    dlow_stride,
    down_stride,
    x_stride,
    dres_stride,
    eps,
    R: tl.constexpr,
    UNIT_OFFSET: tl.constexpr,
    ROUND_FIRST: tl.constexpr,
    HAS_RES: tl.constexpr,
    AGAIN: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, COLS)
    rows_in, cols_in = rows < M, cols < H
    inside = rows_in[:, None] & cols_in[None, :]
    values = tl.load(x + rows[:, None] * x_stride + cols[None, :], mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(dh + rows[:, None] * dh_stride + cols[None, :], mask=inside, other=0.0).to(tl.float32)
    gain = load_weight(weight, cols, cols_in, UNIT_OFFSET)
    rstd = tl.rsqrt(tl.sum(values * values, 1) / H + eps)
    scaled = values * rstd[:, None]
    if AGAIN:
        result = weigh(scaled, gain, h.dtype.element_ty, ROUND_FIRST)
        tl.store(h + rows[:, None] * H + cols[None, :], result, mask=inside)
    grad = add_low(grad, dlow, dlow_stride, down, down_stride, rows, rows_in, cols, cols_in, R)
    grad = grad * gain[None, :]
    mean = tl.sum(grad * scaled, 1) / H
    grad = rstd[:, None] * (grad - scaled * mean[:, None])
    if HAS_RES:
        grad += tl.load(dres + rows[:, None] * dres_stride + cols[None, :], mask=inside, other=0.0).to(tl.float32)
    tl.store(dx + rows[:, None] * H + cols[None, :], grad.to(dx.dtype.element_ty), mask=inside)


def norm(x: Tensor, weight: Tensor, eps: float, unit_offset: bool, round_first: bool) -> Tensor:
    """Launch of `fitune::norm`."""
    M, H = x.shape
    out = torch.empty((M, H), dtype=x.dtype, device=x.device)
    if M == 0:
        return out
    cols = block(H)
    rows = max(1, FORWARD // cols)
    _norm[(cdiv(M, rows),)](
        *(x, weight, out, M, H, x.stride(0), eps),
        *(unit_offset, round_first, rows, cols),
        num_warps=warps_of(cols),
        enable_fp_fusion=False,
    )
    return out


def norm_backward(
    dh: Tensor,
    dlow: Tensor | None,
    down: Tensor | None,
    x: Tensor,
    weight: Tensor,
    eps: float,
    unit_offset: bool,
    round_first: bool,
    dres: Tensor | None,
    again: bool,
) -> tuple[Tensor, Tensor]:
    """Launch of `fitune::norm_backward`."""
    M, H = x.shape
    R = ranks(dlow, down)
    dx = torch.empty((M, H), dtype=x.dtype, device=x.device)
    h = torch.empty((M, H) if again else (0,), dtype=x.dtype, device=x.device)
    if M == 0:
        return dx, h
    cols = block(H)
    rows = max(1, (BACKWARD if R else FORWARD) // cols)
    _norm_backward[(cdiv(M, rows),)](
        *(dh, dlow, down, x, weight, dres, dx, h, M, H, dh.stride(0)),
        *(stride(dlow), stride(down), x.stride(0), stride(dres), eps),
        *(R, unit_offset, round_first, dres is not None, again, rows, cols),
        num_warps=warps_of(cols),
        enable_fp_fusion=False,
    )
    return dx, h
