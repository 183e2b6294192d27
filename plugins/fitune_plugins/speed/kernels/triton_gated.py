"""A gated MLP's product on CUDA: a program takes a block of rows and columns."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fitune_plugins.speed.kernels.gated import ACTIVATIONS
from fitune_plugins.speed.kernels.library import ranks
from fitune_plugins.speed.kernels.triton_parts import COLS, ROWS, WARPS, activate, add_low, cdiv, place, stride


@triton.jit
def _gated(
    gate,
    up,
    low_gate,
    up_gate,
    low_up,
    up_up,
    out,
    M,
    WIDTH,
    gate_stride,
    up_stride,
    low_gate_stride,
    up_gate_stride,
    low_up_stride,
    up_up_stride,
    ACT: tl.constexpr,
    R_GATE: tl.constexpr,
    R_UP: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    rows, cols = place(M, ROWS, COLS)
    rows_in, cols_in = rows < M, cols < WIDTH
    inside = rows_in[:, None] & cols_in[None, :]
    dtype: tl.constexpr = out.dtype.element_ty
    left = tl.load(gate + rows[:, None] * gate_stride + cols[None, :], mask=inside, other=0.0).to(tl.float32)
    right = tl.load(up + rows[:, None] * up_stride + cols[None, :], mask=inside, other=0.0).to(tl.float32)
    left = add_low(left, low_gate, low_gate_stride, up_gate, up_gate_stride, rows, rows_in, cols, cols_in, R_GATE)
    right = add_low(right, low_up, low_up_stride, up_up, up_up_stride, rows, rows_in, cols, cols_in, R_UP)
    value, _ = activate(left.to(dtype).to(tl.float32), ACT)
    result = value.to(dtype).to(tl.float32) * right.to(dtype).to(tl.float32)
    tl.store(out + rows[:, None] * WIDTH + cols[None, :], result.to(dtype), mask=inside)


@triton.jit
def _gated_backward(
    dact,
    dlow,
    down,
    gate,
    up,
    low_gate,
    up_gate,
    low_up,
    up_up,
    both,
    product,
    M,
    WIDTH,
    dact_stride,
    dlow_stride,
    down_stride,
    gate_stride,
    up_stride,
    low_gate_stride,
    up_gate_stride,
    low_up_stride,
    up_up_stride,
    ACT: tl.constexpr,
    R: tl.constexpr,
    R_GATE: tl.constexpr,
    R_UP: tl.constexpr,
    AGAIN: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    rows, cols = place(M, ROWS, COLS)
    rows_in, cols_in = rows < M, cols < WIDTH
    inside = rows_in[:, None] & cols_in[None, :]
    dtype: tl.constexpr = both.dtype.element_ty
    left = tl.load(gate + rows[:, None] * gate_stride + cols[None, :], mask=inside, other=0.0).to(tl.float32)
    right = tl.load(up + rows[:, None] * up_stride + cols[None, :], mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(dact + rows[:, None] * dact_stride + cols[None, :], mask=inside, other=0.0).to(tl.float32)
    left = add_low(left, low_gate, low_gate_stride, up_gate, up_gate_stride, rows, rows_in, cols, cols_in, R_GATE)
    right = add_low(right, low_up, low_up_stride, up_up, up_up_stride, rows, rows_in, cols, cols_in, R_UP)
    grad = add_low(grad, dlow, dlow_stride, down, down_stride, rows, rows_in, cols, cols_in, R)
    right = right.to(dtype).to(tl.float32)
    value, slope = activate(left.to(dtype).to(tl.float32), ACT)
    at = rows[:, None] * (2 * WIDTH) + cols[None, :]
    tl.store(both + at, (grad * right * slope).to(dtype), mask=inside)
    tl.store(both + at + WIDTH, (grad * value).to(dtype), mask=inside)
    if AGAIN:
        result = value.to(dtype).to(tl.float32) * right
        tl.store(product + rows[:, None] * WIDTH + cols[None, :], result.to(dtype), mask=inside)


def gated(
    gate: Tensor,
    up: Tensor,
    low_gate: Tensor | None,
    up_gate_t: Tensor | None,
    low_up: Tensor | None,
    up_up_t: Tensor | None,
    act: str,
) -> Tensor:
    """Launch of `fitune::gated`."""
    M, width = gate.shape
    r_gate, r_up = ranks(low_gate, up_gate_t), ranks(low_up, up_up_t)
    out = torch.empty((M, width), dtype=gate.dtype, device=gate.device)
    if M == 0:
        return out
    _gated[(cdiv(M, ROWS) * cdiv(width, COLS),)](
        *(gate, up, low_gate, up_gate_t, low_up, up_up_t, out, M, width, gate.stride(0), up.stride(0)),
        *(stride(low_gate), stride(up_gate_t), stride(low_up), stride(up_up_t)),
        *(_known(act), r_gate, r_up, ROWS, COLS),
        num_warps=WARPS,
        enable_fp_fusion=False,
    )
    return out


def gated_backward(
    dact: Tensor,
    dlow: Tensor | None,
    down: Tensor | None,
    gate: Tensor,
    up: Tensor,
    low_gate: Tensor | None,
    up_gate_t: Tensor | None,
    low_up: Tensor | None,
    up_up_t: Tensor | None,
    act: str,
    again: bool,
) -> tuple[Tensor, Tensor]:
    """Launch of `fitune::gated_backward`."""
    M, width = gate.shape
    R, r_gate, r_up = ranks(dlow, down), ranks(low_gate, up_gate_t), ranks(low_up, up_up_t)
    both = torch.empty((M, 2 * width), dtype=gate.dtype, device=gate.device)
    product = torch.empty((M, width) if again else (0,), dtype=gate.dtype, device=gate.device)
    if M == 0:
        return both, product
    _gated_backward[(cdiv(M, ROWS) * cdiv(width, COLS),)](
        *(dact, dlow, down, gate, up, low_gate, up_gate_t, low_up, up_up_t, both, product, M, width),
        *(dact.stride(0), stride(dlow), stride(down), gate.stride(0), up.stride(0)),
        *(stride(low_gate), stride(up_gate_t), stride(low_up), stride(up_up_t)),
        *(_known(act), R, r_gate, r_up, again, ROWS, COLS),
        num_warps=WARPS,
        enable_fp_fusion=False,
    )
    return both, product


def _known(act: str) -> str:
    if act not in ACTIVATIONS:
        raise ValueError(f"fitune: activation {act!r} is not known; known are {', '.join(ACTIVATIONS)}")
    return act
