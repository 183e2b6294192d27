"""The product of a gated MLP (SwiGLU, GeGLU: Shazeer, arXiv 2002.05202), and the gradients of its two factors."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fitune_plugins.speed.kernels.library import operation, wide, with_low

ACTIVATIONS = ("silu", "gelu_tanh", "gelu")
"""Of the gate: x sigmoid(x); GELU by tanh; GELU by the error function."""


def gated(
    gate: Tensor,
    up: Tensor,
    low_gate: Tensor | None,
    up_gate_t: Tensor | None,
    low_up: Tensor | None,
    up_up_t: Tensor | None,
    act: str,
) -> Tensor:
    """`act(gate + low_gate @ up_gate_t) * (up + low_up @ up_up_t)` `[M, I]`, with `act` of `ACTIVATIONS`.

    Sums, the activation and the product are rounded to the type of `gate`, each once.
    """
    return _gated(gate, up, low_gate, up_gate_t, low_up, up_up_t, act)  # type: ignore[no-any-return]


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
    """Gradients of the two factors side by side `[M, 2 I]`, and with `again` the product (else a tensor of shape (0,)).

    The product's gradient is `dact [M, I] + dlow [M, R] @ down [R, I]`.
    """
    return _gated_backward(  # type: ignore[no-any-return]
        dact, dlow, down, gate, up, low_gate, up_gate_t, low_up, up_up_t, act, again
    )


def _activated(x: Tensor, act: str) -> Tensor:
    if act == "silu":
        return F.silu(x)
    _known(act)
    return F.gelu(x, approximate="tanh" if act == "gelu_tanh" else "none")


def _slope(x: Tensor, act: str) -> Tensor:
    """The activation's derivative."""
    if act == "silu":
        s = torch.sigmoid(x)
        return s * (1 + x * (1 - s))
    if act == "gelu":
        return 0.5 * (1 + torch.erf(x * math.sqrt(0.5))) + x * torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    _known(act)
    s = torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return s + x * s * (1 - s) * 2 * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)


def _known(act: str) -> None:
    if act not in ACTIVATIONS:
        raise ValueError(f"fitune: activation {act!r} is not known; known are {', '.join(ACTIVATIONS)}")


def _gated_cpu(
    gate: Tensor,
    up: Tensor,
    low_gate: Tensor | None,
    up_gate_t: Tensor | None,
    low_up: Tensor | None,
    up_up_t: Tensor | None,
    act: str,
) -> Tensor:
    left = wide(with_low(gate, low_gate, up_gate_t).to(gate.dtype))
    right = wide(with_low(up, low_up, up_up_t).to(gate.dtype))
    return (wide(_activated(left, act).to(gate.dtype)) * right).to(gate.dtype)


def _gated_meta(gate: Tensor, *_: Any) -> Tensor:
    return gate.new_empty(gate.shape)


def _gated_backward_cpu(
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
    grad = with_low(dact, dlow, down)
    left = wide(with_low(gate, low_gate, up_gate_t).to(gate.dtype))
    right = wide(with_low(up, low_up, up_up_t).to(gate.dtype))
    activated = _activated(left, act)
    both = torch.cat([grad * right * _slope(left, act), grad * activated], 1).to(gate.dtype)
    product = (wide(activated.to(gate.dtype)) * right).to(gate.dtype) if again else gate.new_empty(0)
    return both, product


def _gated_backward_meta(dact: Tensor, dlow: Any, down: Any, gate: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    rows, width = gate.shape
    return gate.new_empty(rows, 2 * width), gate.new_empty(gate.shape if rest[-1] else 0)


_INPUTS = "Tensor gate, Tensor up, Tensor? low_gate, Tensor? up_gate_t, Tensor? low_up, Tensor? up_up_t, str act"
_gated = operation(
    f"gated({_INPUTS}) -> Tensor",
    cpu=_gated_cpu,
    meta=_gated_meta,
    cuda="triton_gated.gated",
)
_gated_backward = operation(
    f"gated_backward(Tensor dact, Tensor? dlow, Tensor? down, {_INPUTS}, bool again) -> (Tensor, Tensor)",
    cpu=_gated_backward_cpu,
    meta=_gated_backward_meta,
    cuda="triton_gated.gated_backward",
)
