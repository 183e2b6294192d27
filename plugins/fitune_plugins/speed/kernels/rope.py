"""Rotary positions (Su et al., arXiv 2104.09864) of queries and keys, with norms of each head where a model has them.

Halves of a head turn against each other, as transformers' `rotate_half` has it. Only the first columns turn that `cos`
has; the rest of a head goes through.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fitune_plugins.speed.kernels.library import operation, wide, with_low
from fitune_plugins.speed.kernels.norm import normed, normed_backward


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
    """Queries `[M, heads, D]` and keys, turned, of `q [M, heads * D]` and `k`.

    Low-rank parts are added first; then each head is normed (as `norm` does) by `q_weight [D]` and `k_weight [D]` where
    they are given; then it turns by `cos` and `sin` `[rows, columns that turn]`, token m by row `m % rows`. Each of
    these is rounded to the type of `q`, and so are the two products of a turn where `cos` has that type, as in
    transformers.
    """
    return _rope(  # type: ignore[no-any-return]
        q, k, cos, sin, low_q, up_q_t, low_k, up_k_t, q_weight, k_weight, eps, unit_offset, round_first, head_dim
    )


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
    """Gradients of what `rope` took, and of values: `[M, heads of q * D | heads of k * D | heads of v * width of v]`.

    `dq`, `dk`, `dv` are `[M, heads, D]`, of any strides but the last. `q` and `k`, as `rope` took them, and low-rank
    parts are needed only where there are norms' weights.
    """
    return _rope_backward(  # type: ignore[no-any-return]
        *(dq, dk, dv, cos, sin, q, k, low_q, up_q_t, low_k, up_k_t, q_weight, k_weight),
        *(eps, unit_offset, round_first, head_dim),
    )


def products_round(x: Tensor, cos: Tensor) -> bool:
    """Whether the products of a turn are rounded to the type of `x`, or kept in the wide one."""
    return torch.promote_types(x.dtype, cos.dtype) == x.dtype


def _heads(x: Tensor, low: Tensor | None, up_t: Tensor | None, head_dim: int) -> Tensor:
    return with_low(x, low, up_t).to(x.dtype).view(len(x), x.shape[1] // head_dim, head_dim)


def _rows(table: Tensor, tokens: int) -> Tensor:
    """A row `[1, columns]` for each token, in the wide type."""
    return wide(table[torch.arange(tokens, device=table.device) % table.shape[0]])[:, None]


def _half_turned(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat([-x[..., half:], x[..., :half]], -1)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`x [M, heads, D]`, turned."""
    width, rounds = cos.shape[1], products_round(x, cos)
    c, s = _rows(cos, len(x)), _rows(sin, len(x))
    part = wide(x[..., :width])
    straight, crossed = part * c, _half_turned(part) * s
    if rounds:
        straight, crossed = wide(straight.to(x.dtype)), wide(crossed.to(x.dtype))
    return torch.cat([(straight + crossed).to(x.dtype), x[..., width:]], -1)


def _turned_back(grad: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The gradient `[M, heads, D]` before the turn, in the wide type."""
    width = cos.shape[1]
    c, s = _rows(cos, len(grad)), _rows(sin, len(grad))
    part = wide(grad[..., :width])
    return torch.cat([part * c - _half_turned(part * s), wide(grad[..., width:])], -1)


def _rope_cpu(
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
    def one(x: Tensor, low: Tensor | None, up_t: Tensor | None, weight: Tensor | None) -> Tensor:
        heads = _heads(x, low, up_t, head_dim)
        if weight is not None:
            heads = normed(heads, weight, eps, unit_offset, round_first)
        return _turned(heads, cos, sin)

    return one(q, low_q, up_q_t, q_weight), one(k, low_k, up_k_t, k_weight)


def _rope_meta(q: Tensor, k: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    width = rest[-1]
    return q.new_empty(len(q), q.shape[1] // width, width), k.new_empty(len(k), k.shape[1] // width, width)


def _rope_backward_cpu(
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
    def one(grad: Tensor, x: Tensor | None, low: Tensor | None, up_t: Tensor | None, weight: Tensor | None) -> Tensor:
        back = _turned_back(grad, cos, sin)
        if weight is not None:
            assert x is not None, "a norm's gradient needs its input"
            back = normed_backward(back, wide(_heads(x, low, up_t, head_dim)), weight, eps, unit_offset)
        return back.to(grad.dtype).flatten(1)

    return torch.cat([one(dq, q, low_q, up_q_t, q_weight), one(dk, k, low_k, up_k_t, k_weight), dv.flatten(1)], 1)


def _rope_backward_meta(dq: Tensor, dk: Tensor, dv: Tensor, *_: Any) -> Tensor:
    return dq.new_empty(len(dq), sum(grad.shape[1] * grad.shape[2] for grad in (dq, dk, dv)))


_LOW = "Tensor? low_q, Tensor? up_q_t, Tensor? low_k, Tensor? up_k_t, Tensor? q_weight, Tensor? k_weight,"
_NORM = " float eps, bool unit_offset, bool round_first, int head_dim"
_rope = operation(
    f"rope(Tensor q, Tensor k, Tensor cos, Tensor sin, {_LOW}{_NORM}) -> (Tensor, Tensor)",
    cpu=_rope_cpu,
    meta=_rope_meta,
    cuda="triton_rope.rope",
)
_rope_backward = operation(
    "rope_backward(Tensor dq, Tensor dk, Tensor dv, Tensor cos, Tensor sin, Tensor? q, Tensor? k,"
    f" {_LOW}{_NORM}) -> Tensor",
    cpu=_rope_backward_cpu,
    meta=_rope_backward_meta,
    cuda="triton_rope_backward.rope_backward",
)
