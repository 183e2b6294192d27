"""The gradient of rotary positions on CUDA, laid out as `triton_rope.py` is."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fitune_plugins.speed.kernels.library import ranks
from fitune_plugins.speed.kernels.triton_parts import block, cdiv, load_weight, stride
from fitune_plugins.speed.kernels.triton_rope import HEADS, WARPS, part, table, tokens_of


@triton.jit
def _turn_back(
    grad,
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
    grad_stride,
    head_stride,
    x_stride,
    low_stride,
    up_stride,
    out_stride,
    eps,
    R: tl.constexpr,
    NORMED: tl.constexpr,
    UNIT_OFFSET: tl.constexpr,
    D: tl.constexpr,
    HALF: tl.constexpr,
    COLS: tl.constexpr,
    REST: tl.constexpr,
    HEADS: tl.constexpr,
):
    """Heads `group * HEADS` and on, backward."""
    dtype: tl.constexpr = out.dtype.element_ty
    cols = tl.arange(0, COLS)
    cols_in = cols < HALF
    inside = rows_in[:, None] & cols_in[None, :]
    rest = tl.arange(0, REST) + 2 * HALF
    rest_in = rest < D
    rest_inside = rows_in[:, None] & rest_in[None, :]
    for head in range(HEADS):
        line = grad + rows[:, None] * grad_stride + (group * HEADS + head).to(tl.int64) * head_stride
        y1 = tl.load(line + cols[None, :], mask=inside, other=0.0).to(tl.float32)
        y2 = tl.load(line + cols[None, :] + HALF, mask=inside, other=0.0).to(tl.float32)
        g1 = y1 * c1 + y2 * s2
        g2 = y2 * c2 - y1 * s1
        if 2 * HALF < D:
            g3 = tl.load(line + rest[None, :], mask=rest_inside, other=0.0).to(tl.float32)
        base = (group * HEADS + head) * D
        if NORMED:
            at = rows[:, None] * x_stride + (base + cols)[None, :]
            x1 = part(x, low, low_stride, up, up_stride, rows, rows_in, at, base + cols, cols_in, R, dtype)
            x2 = part(
                x, low, low_stride, up, up_stride, rows, rows_in, at + HALF, base + cols + HALF, cols_in, R, dtype
            )
            g1 *= load_weight(weight, cols, cols_in, UNIT_OFFSET)[None, :]
            g2 *= load_weight(weight + HALF, cols, cols_in, UNIT_OFFSET)[None, :]
            squares = tl.sum(x1 * x1, 1) + tl.sum(x2 * x2, 1)
            mean = tl.sum(g1 * x1, 1) + tl.sum(g2 * x2, 1)
            if 2 * HALF < D:
                at = rows[:, None] * x_stride + (base + rest)[None, :]
                x3 = part(x, low, low_stride, up, up_stride, rows, rows_in, at, base + rest, rest_in, R, dtype)
                g3 *= load_weight(weight, rest, rest_in, UNIT_OFFSET)[None, :]
                squares += tl.sum(x3 * x3, 1)
                mean += tl.sum(g3 * x3, 1)
            rstd = tl.rsqrt(squares / D + eps)
            mean = (mean / D * rstd * rstd)[:, None]
            rstd = rstd[:, None]
            g1 = rstd * (g1 - x1 * mean)
            g2 = rstd * (g2 - x2 * mean)
            if 2 * HALF < D:
                g3 = rstd * (g3 - x3 * mean)
        to = out + rows[:, None] * out_stride + (base + cols)[None, :]
        tl.store(to, g1.to(dtype), mask=inside)
        tl.store(to + HALF, g2.to(dtype), mask=inside)
        if 2 * HALF < D:
            to = out + rows[:, None] * out_stride + (base + rest)[None, :]
            tl.store(to, g3.to(dtype), mask=rest_inside)


@triton.jit
def _rope_backward(
    dq,
    dk,
    dv,
    cos,
    sin,
    q,
    k,
    low_q,
    up_q,
    low_k,
    up_k,
    q_weight,
    k_weight,
    out,
    M,
    TABLE,
    Q_HEADS,
    K_HEADS,
    V_HEADS,
    dq_stride,
    dq_head,
    dk_stride,
    dk_head,
    dv_stride,
    dv_head,
    cos_stride,
    sin_stride,
    q_stride,
    k_stride,
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
    D: tl.constexpr,
    HALF: tl.constexpr,
    COLS: tl.constexpr,
    REST: tl.constexpr,
    V_WIDTH: tl.constexpr,
    V_COLS: tl.constexpr,
    TOKENS: tl.constexpr,
    Q_GROUP: tl.constexpr,
    K_GROUP: tl.constexpr,
    V_GROUP: tl.constexpr,
):
    q_groups = Q_HEADS // Q_GROUP
    k_groups = K_HEADS // K_GROUP
    groups = q_groups + k_groups + V_HEADS // V_GROUP
    group = tl.program_id(0) % groups
    rows = (tl.program_id(0) // groups).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    rows_in = rows < M
    width = (Q_HEADS + K_HEADS) * D + V_HEADS * V_WIDTH
    if group >= q_groups + k_groups:
        cols = tl.arange(0, V_COLS)
        inside = rows_in[:, None] & (cols < V_WIDTH)[None, :]
        for one in range(V_GROUP):
            head = (group - q_groups - k_groups) * V_GROUP + one
            line = dv + rows[:, None] * dv_stride + head.to(tl.int64) * dv_head
            to = out + rows[:, None] * width + ((Q_HEADS + K_HEADS) * D + head * V_WIDTH + cols)[None, :]
            tl.store(to, tl.load(line + cols[None, :], mask=inside), mask=inside)
    else:
        c1, c2 = table(cos, rows % TABLE, rows_in, cos_stride, HALF, COLS)
        s1, s2 = table(sin, rows % TABLE, rows_in, sin_stride, HALF, COLS)
        if group < q_groups:
            _turn_back(
                dq, q, low_q, up_q, q_weight, out, group, rows, rows_in, c1, c2, s1, s2,
                dq_stride, dq_head, q_stride, low_q_stride, up_q_stride, width, eps,
                R_Q, Q_NORMED, UNIT_OFFSET, D, HALF, COLS, REST, Q_GROUP,
            )  # fmt: skip
        else:
            _turn_back(
                dk, k, low_k, up_k, k_weight, out + Q_HEADS * D, group - q_groups, rows, rows_in, c1, c2, s1, s2,
                dk_stride, dk_head, k_stride, low_k_stride, up_k_stride, width, eps,
                R_K, K_NORMED, UNIT_OFFSET, D, HALF, COLS, REST, K_GROUP,
            )  # fmt: skip


def rope_backward(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    cos: Tensor,
    sin: Tensor,
    q: Tensor | None,
    k: Tensor | None,
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
) -> Tensor:
    """Launch of `fitune::rope_backward`."""
    M, D = len(dq), head_dim
    q_heads, k_heads, v_heads, v_width = dq.shape[1], dk.shape[1], dv.shape[1], dv.shape[2]
    out = torch.empty((M, (q_heads + k_heads) * D + v_heads * v_width), dtype=dq.dtype, device=dq.device)
    if M == 0:
        return out
    q_group, k_group, v_group = (math.gcd(heads, HEADS) for heads in (q_heads, k_heads, v_heads))
    half = cos.shape[1] // 2
    cols, rest = block(half), block(D - 2 * half)
    tokens = tokens_of(cols, rest)
    _rope_backward[(cdiv(M, tokens) * (q_heads // q_group + k_heads // k_group + v_heads // v_group),)](
        *(dq, dk, dv, cos, sin, q, k, low_q, up_q_t, low_k, up_k_t, q_weight, k_weight, out),
        *(M, len(cos), q_heads, k_heads, v_heads),
        *(dq.stride(0), dq.stride(1), dk.stride(0), dk.stride(1), dv.stride(0), dv.stride(1)),
        *(cos.stride(0), sin.stride(0), stride(q), stride(k)),
        *(stride(low_q), stride(up_q_t), stride(low_k), stride(up_k_t), eps),
        *(ranks(low_q, up_q_t), ranks(low_k, up_k_t), q_weight is not None, k_weight is not None, unit_offset),
        *(D, half, cols, rest, v_width, block(v_width), tokens, q_group, k_group, v_group),
        num_warps=WARPS,
        enable_fp_fusion=False,
    )
    return out
