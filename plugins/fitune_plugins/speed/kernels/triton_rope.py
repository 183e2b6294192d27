"""Rotary positions on CUDA: a program takes some heads of a block of tokens, in two halves and the rest of each head.

Queries, keys and (backward) values are one launch. Cosines and sines are read once for all heads of a program, a
low-rank part's columns once for all of its tokens.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fitune_plugins.speed.kernels.library import ranks
from fitune_plugins.speed.kernels.rope import products_round
from fitune_plugins.speed.kernels.triton_parts import add_low, block, cdiv, load_weight, stride, weigh

HEADS, WARPS = 4, 4
"""Of a program; fewer heads where the model's number of them is no multiple of 4."""
NUMBERS = 1024
"""Of a half of a head that a program holds at one time: 8 neighbours a thread, which are 16 bytes in the half types."""


def tokens_of(cols: int, rest: int) -> int:
    """Tokens of a program: 16 for heads of 128."""
    return max(1, NUMBERS // max(cols, rest))


@triton.jit
def table(table, rows, rows_in, stride, HALF: tl.constexpr, COLS: tl.constexpr):
    """The two halves [tokens, COLS] of the cosines, or of the sines."""
    cols = tl.arange(0, COLS)
    at = table + rows[:, None] * stride + cols[None, :]
    inside = rows_in[:, None] & (cols < HALF)[None, :]
    one = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    two = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
    return one, two


@triton.jit
def part(x, low, low_stride, up, up_stride, rows, rows_in, at, cols, cols_in, R: tl.constexpr, dtype: tl.constexpr):
    """Some columns of a head [tokens, cols]: read at `at`, the low-rank part added, rounded; in float32."""
    values = tl.load(x + at, mask=rows_in[:, None] & cols_in[None, :], other=0.0).to(tl.float32)
    if R > 0:
        values = add_low(values, low, low_stride, up, up_stride, rows, rows_in, cols, cols_in, R, EACH=True)
        values = values.to(dtype).to(tl.float32)
    return values


@triton.jit
def _turn(
    x,
    low,
    up,
    weight,
    out,
    group,
    rows,
    rows_in,
    c1,
    c2,
    s1,
    s2,
    x_stride,
    low_stride,
    up_stride,
    out_stride,
    eps,
    R: tl.constexpr,
    NORMED: tl.constexpr,
    UNIT_OFFSET: tl.constexpr,
    ROUND_FIRST: tl.constexpr,
    ROUNDS: tl.constexpr,
    D: tl.constexpr,
    HALF: tl.constexpr,
    COLS: tl.constexpr,
    REST: tl.constexpr,
    HEADS: tl.constexpr,
):
    """Heads `group * HEADS` and on, forward."""
    dtype: tl.constexpr = out.dtype.element_ty
    cols = tl.arange(0, COLS)
    cols_in = cols < HALF
    inside = rows_in[:, None] & cols_in[None, :]
    rest = tl.arange(0, REST) + 2 * HALF
    rest_in = rest < D
    for head in range(HEADS):
        base = (group * HEADS + head) * D
        at = rows[:, None] * x_stride + (base + cols)[None, :]
        x1 = part(x, low, low_stride, up, up_stride, rows, rows_in, at, base + cols, cols_in, R, dtype)
        x2 = part(x, low, low_stride, up, up_stride, rows, rows_in, at + HALF, base + cols + HALF, cols_in, R, dtype)
        if 2 * HALF < D:
            at = rows[:, None] * x_stride + (base + rest)[None, :]
            x3 = part(x, low, low_stride, up, up_stride, rows, rows_in, at, base + rest, rest_in, R, dtype)
        if NORMED:
            squares = tl.sum(x1 * x1, 1) + tl.sum(x2 * x2, 1)
            if 2 * HALF < D:
                squares += tl.sum(x3 * x3, 1)
            rstd = tl.rsqrt(squares / D + eps)[:, None]
            x1 = weigh(x1 * rstd, load_weight(weight, cols, cols_in, UNIT_OFFSET), dtype, ROUND_FIRST).to(tl.float32)
            x2 = weigh(x2 * rstd, load_weight(weight + HALF, cols, cols_in, UNIT_OFFSET), dtype, ROUND_FIRST)
            x2 = x2.to(tl.float32)
            if 2 * HALF < D:
                x3 = weigh(x3 * rstd, load_weight(weight, rest, rest_in, UNIT_OFFSET), dtype, ROUND_FIRST)
                x3 = x3.to(tl.float32)
        if ROUNDS:
            y1 = (x1 * c1).to(dtype).to(tl.float32) - (x2 * s1).to(dtype).to(tl.float32)
            y2 = (x2 * c2).to(dtype).to(tl.float32) + (x1 * s2).to(dtype).to(tl.float32)
        else:
            y1 = x1 * c1 - x2 * s1
            y2 = x2 * c2 + x1 * s2
        to = out + rows[:, None] * out_stride + (base + cols)[None, :]
        tl.store(to, y1.to(dtype), mask=inside)
        tl.store(to + HALF, y2.to(dtype), mask=inside)
        if 2 * HALF < D:
            to = out + rows[:, None] * out_stride + (base + rest)[None, :]
            tl.store(to, x3.to(dtype), mask=rows_in[:, None] & rest_in[None, :])


@triton.jit
def _rope(
    q,
    k,
    cos,
    sin,
    low_q,
    up_q,
    low_k,
    up_k,
    q_weight,
    k_weight,
    q_out,
    k_out,
    M,
    TABLE,
    Q_HEADS,
    K_HEADS,
    q_stride,
    k_stride,
    cos_stride,
    sin_stride,
    low_q_stride,
    up_q_stride,
    low_k_stride,
    up_k_stride,
    eps,
    R_Q: tl.constexpr,
    R_K: tl.constexpr,
    Q_NORMED: tl.constexpr,
    K_NORMED: tl.constexpr,
    UNIT_OFFSET: tl.constexpr,
    ROUND_FIRST: tl.constexpr,
    ROUNDS: tl.constexpr,
    D: tl.constexpr,
    HALF: tl.constexpr,
    COLS: tl.constexpr,
    REST: tl.constexpr,
    TOKENS: tl.constexpr,
    Q_GROUP: tl.constexpr,
    K_GROUP: tl.constexpr,
):
    q_groups = Q_HEADS // Q_GROUP
    groups = q_groups + K_HEADS // K_GROUP
    group = tl.program_id(0) % groups
    rows = (tl.program_id(0) // groups).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    rows_in = rows < M
    c1, c2 = table(cos, rows % TABLE, rows_in, cos_stride, HALF, COLS)
    s1, s2 = table(sin, rows % TABLE, rows_in, sin_stride, HALF, COLS)
    if group < q_groups:
        _turn(
            q, low_q, up_q, q_weight, q_out, group, rows, rows_in, c1, c2, s1, s2,
            q_stride, low_q_stride, up_q_stride, Q_HEADS * D, eps,
            R_Q, Q_NORMED, UNIT_OFFSET, ROUND_FIRST, ROUNDS, D, HALF, COLS, REST, Q_GROUP,
        )  # fmt: skip
    else:
        _turn(
            k, low_k, up_k, k_weight, k_out, group - q_groups, rows, rows_in, c1, c2, s1, s2,
            k_stride, low_k_stride, up_k_stride, K_HEADS * D, eps,
            R_K, K_NORMED, UNIT_OFFSET, ROUND_FIRST, ROUNDS, D, HALF, COLS, REST, K_GROUP,
        )  # fmt: skip


def rope(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    low_q: Tensor | None,
    up_q_t: Tensor | None,
    low_k: Tensor | None,
    up_k_t: Tensor | None,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
    unit_offset: bool,
    round_first: bool,
    head_dim: int,
) -> tuple[Tensor, Tensor]:
    """Launch of `fitune::rope`."""
    M, D = len(q), head_dim
    q_heads, k_heads = q.shape[1] // D, k.shape[1] // D
    q_out = torch.empty((M, q_heads, D), dtype=q.dtype, device=q.device)
    k_out = torch.empty((M, k_heads, D), dtype=k.dtype, device=k.device)
    if M == 0:
        return q_out, k_out
    q_group, k_group = math.gcd(q_heads, HEADS), math.gcd(k_heads, HEADS)
    half = cos.shape[1] // 2
    cols, rest = block(half), block(D - 2 * half)
    tokens = tokens_of(cols, rest)
    _rope[(cdiv(M, tokens) * (q_heads // q_group + k_heads // k_group),)](
        *(q, k, cos, sin, low_q, up_q_t, low_k, up_k_t, q_weight, k_weight, q_out, k_out),
        *(M, len(cos), q_heads, k_heads, q.stride(0), k.stride(0), cos.stride(0), sin.stride(0)),
        *(stride(low_q), stride(up_q_t), stride(low_k), stride(up_k_t), eps),
        *(ranks(low_q, up_q_t), ranks(low_k, up_k_t), q_weight is not None, k_weight is not None),
        *(unit_offset, round_first, products_round(q, cos), D, half, cols, rest),
        *(tokens, q_group, k_group),
        num_warps=WARPS,
        enable_fp_fusion=False,
    )
    return q_out, k_out
