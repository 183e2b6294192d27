"""RMSNorm (Zhang and Sennrich, arXiv 1910.07467) of rows, and the gradient of its input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fitune_plugins.speed.kernels.library import operation, wide, with_low


def norm(x: Tensor, weight: Tensor, eps: float, unit_offset: bool, round_first: bool) -> Tensor:
    """RMSNorm of `x [M, H]` by `weight [H]`, in `x`'s type.

    `round_first`: Llama's formula, `weight * (x / rms).to(type)`; else Gemma's and OLMo 2's,
    `(x / rms * weight).to(type)`, in float32.
    `unit_offset`: the weight is one more than what is given (Gemma).
    """
    return _norm(x, weight, eps, unit_offset, round_first)  # type: ignore[no-any-return]


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
    """Gradient of `norm`'s input, and with `again` its result once more (else a tensor of shape (0,)).

    The result's gradient is `dh [M, H] + dlow [M, R] @ down [R, H]`; `dres [M, H]` is added to the input's: that of a
    residual connection around the norm. The weight is frozen.
    """
    return _norm_backward(dh, dlow, down, x, weight, eps, unit_offset, round_first, dres, again)  # type: ignore[no-any-return]


def normed(x: Tensor, weight: Tensor, eps: float, unit_offset: bool, round_first: bool) -> Tensor:
    """RMSNorm along the last axis of `x [..., H]`, in `x`'s type."""
    scaled = wide(x) * _rstd(wide(x), eps)
    gain = weight_of(x, weight, unit_offset)
    return ((wide(scaled.to(x.dtype)) if round_first else scaled) * gain).to(x.dtype)


def normed_backward(grad: Tensor, x: Tensor, weight: Tensor, eps: float, unit_offset: bool) -> Tensor:
    """Gradient of `x [..., H]` from that of the result, both in the wide type."""
    rstd = _rstd(x, eps)
    scaled, weighted = x * rstd, grad * weight_of(x, weight, unit_offset)
    return rstd * (weighted - scaled * (weighted * scaled).mean(-1, keepdim=True))


def weight_of(x: Tensor, weight: Tensor, unit_offset: bool) -> Tensor:
    """The weight that multiplies, in the wide type of `x`."""
    gain = weight.to(wide(x).dtype)
    return gain + 1 if unit_offset else gain


def _rstd(x: Tensor, eps: float) -> Tensor:
    return torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def _norm_meta(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


def _norm_backward_cpu(
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
    dx = normed_backward(with_low(dh, dlow, down), wide(x), weight, eps, unit_offset)
    if dres is not None:
        dx = dx + wide(dres)
    return dx.to(x.dtype), normed(x, weight, eps, unit_offset, round_first) if again else x.new_empty(0)


def _norm_backward_meta(dh: Tensor, dlow: Any, down: Any, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape if rest[-1] else 0)


_norm = operation(
    "norm(Tensor x, Tensor weight, float eps, bool unit_offset, bool round_first) -> Tensor",
    cpu=normed,
    meta=_norm_meta,
    cuda="triton_norm.norm",
)
_norm_backward = operation(
    "norm_backward(Tensor dh, Tensor? dlow, Tensor? down, Tensor x, Tensor weight, float eps, bool unit_offset,"
    " bool round_first, Tensor? dres, bool again) -> (Tensor, Tensor)",
    cpu=_norm_backward_cpu,
    meta=_norm_backward_meta,
    cuda="triton_norm.norm_backward",
)
