"""Floating-point operations of what a trace sees: torch's formulas, and those that torch has not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.flop_counter import flop_registry


def _attention(query: Any, key: Any, products: int) -> int:
    """Products of queries `[B, H, S, D]` with keys `[B, K, T, D]`, of which grouped heads are used anew."""
    rows, heads, tokens, size = query.shape
    return int(products * 2 * rows * heads * tokens * key.shape[2] * size)


def _forward(args: Any, out: Any) -> int:
    return _attention(args[0], args[1], 2)


def _backward(args: Any, out: Any) -> int:
    return _attention(args[1], args[2], 5)


KERNELS = ("flash", "efficient", "cudnn")

OTHERS: dict[str, Callable[..., int]] = {
    **{f"aten._scaled_dot_product_{kernel}_attention.default": _forward for kernel in KERNELS},
    **{f"aten._scaled_dot_product_{kernel}_attention_backward.default": _backward for kernel in KERNELS},
    # torch has a formula for the first, which takes ten times as long
    "aten.mm.default": lambda args, out: 2 * args[0].numel() * args[1].shape[-1],
    "aten.addmm_.default": lambda args, out: 2 * args[1].numel() * args[2].shape[-1],
    # rows x inputs x outputs: bitsandbytes multiplies by a weight that it dequantises first
    "bitsandbytes.gemm_4bit.default": lambda args, out: 2 * args[0].numel() * out.shape[-1],
    # each token with all tokens of the longest document, as if all were of that length
    "torch_attn._varlen_attn.default": lambda args, out: 4 * args[0].numel() * args[5],
    "torch_attn._varlen_attn_backward.default": lambda args, out: 10 * args[1].numel() * args[8],
}
"""Formulas by name, `(arguments, results) -> operations`, where torch has none, or refuses grouped heads."""


def flops_of(operation: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], results: Any) -> int:
    """Of one call of an operation; 0 for those that are not counted. Each multiply-add is two.

    Products of matrices by torch's formulas (`torch.utils.flop_counter`); attention counts the whole square of tokens.
    """
    other = OTHERS.get(name)
    if other is not None:
        return other(args, results)
    formula = flop_registry.get(operation._overloadpacket)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=results))
