"""What the fast path's operations compute, as transformers and peft write it, for autograd to differentiate.

Each function takes what the operation of its name takes, in any type. In float64 it is the truth; in a type of a model
it is what a plain run computes, rounded wherever that is. Shapes as in `fitune_plugins.speed.kernels`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


def _gradients(out: Sequence[Tensor], inputs: Sequence[Tensor], grads: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(list(out), list(inputs), list(grads))


def _leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_()


def _added(x: Tensor, low: Tensor | None, up_t: Tensor | None) -> Tensor:
    return x if low is None or up_t is None else x + low @ up_t


def norm(x: Tensor, weight: Tensor, eps: float, unit_offset: bool, round_first: bool) -> Tensor:
    """LlamaRMSNorm, or that of OLMo 2 and Gemma."""
    wide = x if x.dtype == torch.float64 else x.float()
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if round_first:
        return (weight + 1 if unit_offset else weight) * scaled.to(x.dtype)
    gain = weight.to(wide.dtype)
    return (scaled * (1.0 + gain if unit_offset else gain)).to(x.dtype)


def norm_backward(
    dh: Tensor, dlow: Tensor | None, down: Tensor | None, x: Tensor, weight: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    """By autograd."""
    *how, dres, again = rest
    leaf = _leaf(x)
    h = norm(leaf, weight, *how)
    (dx,) = _gradients([h], [leaf], [_added(dh, dlow, down)])
    return dx if dres is None else dx + dres, h.detach() if again else x.new_empty(0)


def _half_turned(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def _turned(x: Tensor, cos: Tensor, sin: Tensor, weight: Tensor | None, how: Sequence[Any]) -> Tensor:
    heads = x.view(len(x), x.shape[1] // how[-1], how[-1])
    if weight is not None:
        heads = norm(heads, weight, *how[:-1])
    width = cos.shape[1]
    times = -(-len(x) // len(cos))
    c, s = (table.repeat(times, 1)[: len(x), None] for table in (cos, sin))
    part, rest = heads[..., :width], heads[..., width:]
    return torch.cat([((part * c) + (_half_turned(part) * s)).to(x.dtype), rest], dim=-1)


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """Norms of heads, and transformers' `apply_rotary_pos_emb`."""
    low_q, up_q_t, low_k, up_k_t, q_weight, k_weight, *how = rest
    of_k = _turned(_added(k, low_k, up_k_t), cos, sin, k_weight, how)
    return _turned(_added(q, low_q, up_q_t), cos, sin, q_weight, how), of_k


def rope_backward(dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor, *rest: Any) -> Tensor:
    """By autograd."""
    q, k, low_q, up_q_t, low_k, up_k_t, q_weight, k_weight, *how = rest

    def one(grad: Tensor, x: Tensor | None, low: Tensor | None, up_t: Tensor | None, weight: Tensor | None) -> Tensor:
        # Without a norm a turn is linear, and its gradient needs no input.
        leaf = _leaf(torch.zeros_like(grad).flatten(1) if x is None or weight is None else _added(x, low, up_t))
        return _gradients([_turned(leaf, cos, sin, weight, how)], [leaf], [grad])[0]

    return torch.cat([one(dq, q, low_q, up_q_t, q_weight), one(dk, k, low_k, up_k_t, k_weight), dv.flatten(1)], 1)


def gated(gate: Tensor, up: Tensor, *rest: Any) -> Tensor:
    """LlamaMLP between its products."""
    low_gate, up_gate_t, low_up, up_up_t, act = rest
    return ACTIVATIONS[act](_added(gate, low_gate, up_gate_t)) * _added(up, low_up, up_up_t)


def gated_backward(
    dact: Tensor, dlow: Tensor | None, down: Tensor | None, gate: Tensor, up: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    """By autograd."""
    low_gate, up_gate_t, low_up, up_up_t, act, again = rest
    leaves = [_leaf(_added(gate, low_gate, up_gate_t)), _leaf(_added(up, low_up, up_up_t))]
    product = ACTIVATIONS[act](leaves[0]) * leaves[1]
    both = torch.cat(_gradients([product], leaves, [_added(dact, dlow, down)]), 1)
    return both, product.detach() if again else gate.new_empty(0)


def cross_entropy_(logits: Tensor, labels: Tensor, cap: float) -> Tensor:
    """The losses of transformers' causal language models; logits become their gradient."""
    leaf = _leaf(logits)
    capped = torch.tanh(leaf / cap) * cap if cap > 0 else leaf
    wide = capped if capped.dtype == torch.float64 else capped.float()
    losses = F.cross_entropy(wide, labels, reduction="none", ignore_index=-100)
    logits.copy_(_gradients([losses.sum()], [leaf], [torch.ones_like(losses.sum())])[0])
    return losses.detach()


def skinny(x: Tensor, right: Tensor, scaling: float) -> Tensor:
    """peft's `lora_A`, scaled."""
    return scaling * (x @ right.t())


def skinny_(out: Tensor, x: Tensor, right: Tensor, scaling: float) -> None:
    """The same, added."""
    out.copy_(out + scaling * (x @ right.t()))


def onto_residual_(y: Tensor, residual: Tensor, low: Tensor | None, up_t: Tensor | None, multiplier: float) -> None:
    """A decoder layer's residual connection."""
    y.copy_(residual + multiplier * _added(y, low, up_t))
