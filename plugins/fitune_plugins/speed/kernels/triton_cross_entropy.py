"""Cross-entropy on CUDA: a program reads a row for its maximum and sum, and once more to write its gradient."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fitune_plugins.speed.kernels.triton_parts import block

COLS = 8192
"""Columns that a program takes at one time: two loads of 16 bytes for each of its 512 threads."""


@triton.jit
def _capped(x, cap, CAPPED: tl.constexpr):
    """Logits under their soft cap, if there is one: tanh(y) = 2 sigmoid(2 y) - 1."""
    if CAPPED:
        x = (2.0 * tl.sigmoid(2.0 * x / cap) - 1.0) * cap
    return x


@triton.jit
def _log1p(x):
    """log(1 + x) for x >= 0: by the series of 2 atanh(x / (2 + x)) where x is small."""
    z = x / (2.0 + x)
    y = z * z
    series = 2.0 * z * (1.0 + y * (0.33333334 + y * (0.2 + y * (0.14285715 + y * 0.11111111))))
    return tl.where(x < 0.25, series, tl.log(1.0 + x))


@triton.jit
def _cross_entropy(
    logits,
    labels,
    losses,
    logits_stride,
    labels_stride,
    cap,
    V: tl.constexpr,
    CAPPED: tl.constexpr,
    COLS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    line = logits + row * logits_stride
    label = tl.load(labels + row * labels_stride)
    counts = label != -100
    known = (label >= 0) & (label < V)
    # The label's column stands apart from the others, so that p - 1 is made of their sum and not of a difference.
    own = _capped(tl.load(line + label, mask=known, other=0.0).to(tl.float32), cap, CAPPED)
    own = tl.where(known, own, float("-inf"))
    tops = tl.full([COLS], -3.0e38, tl.float32)
    sums = tl.zeros([COLS], tl.float32)
    for start in range(0, V, COLS):
        cols = start + tl.arange(0, COLS)
        x = tl.load(line + cols, mask=cols < V, other=float("-inf")).to(tl.float32)
        x = _capped(x, cap, CAPPED)
        x = tl.where((cols < V) & (cols != label), x, float("-inf"))
        higher = tl.maximum(tops, x)
        sums = sums * tl.exp(tops - higher) + tl.exp(x - higher)
        tops = higher
    top = tl.maximum(tl.max(tops, 0), own)
    rest = tl.sum(sums * tl.exp(tops - top), 0)
    mine = tl.exp(own - top)
    loss = (top - own) + tl.where(mine == 1.0, _log1p(rest), tl.log(rest + mine))
    tl.store(losses + row, tl.where(counts, loss, 0.0))
    scale = 1.0 / (rest + mine)
    for start in range(0, V, COLS):
        cols = start + tl.arange(0, COLS)
        x = tl.load(line + cols, mask=cols < V, other=0.0).to(tl.float32)
        grad = tl.where(cols == label, -rest, tl.exp(_capped(x, cap, CAPPED) - top)) * scale
        if CAPPED:  # 1 - tanh(y)^2
            grad *= 4.0 * tl.sigmoid(2.0 * x / cap) * tl.sigmoid(-2.0 * x / cap)
        tl.store(line + cols, tl.where(counts, grad, 0.0).to(logits.dtype.element_ty), mask=cols < V)


def cross_entropy_(logits: Tensor, labels: Tensor, cap: float) -> Tensor:
    """Launch of `fitune::cross_entropy_`."""
    N, V = logits.shape
    losses = torch.empty((N,), dtype=torch.float32, device=logits.device)
    if N == 0:
        return losses
    cols = min(COLS, block(V))
    _cross_entropy[(N,)](
        *(logits, labels, losses, logits.stride(0), labels.stride(0), cap, V, cap > 0, cols),
        num_warps=min(16, max(4, cols // 256)),
        enable_fp_fusion=False,
    )
    return losses
