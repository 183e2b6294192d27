"""Floating-point operations of what is traced: products of matrices and attention, which are nearly all of a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.flop_counter import flop_registry

OTHERS: dict[str, Callable[..., int]] = {
    # rows x inputs x outputs: bitsandbytes multiplies by a weight that it dequantises first
    "bitsandbytes.gemm_4bit.default": lambda args, out: 2 * args[0].numel() * out.shape[-1],
    # each token with all tokens of the longest document, as if all were of that length
    "torch_attn._varlen_attn.default": lambda args, out: 4 * args[0].numel() * args[5],
    "torch_attn._varlen_attn_backward.default": lambda args, out: 10 * args[1].numel() * args[8],
}
"""Formulas for operations that torch has none of, by name: `(arguments, results) -> operations`."""


def flops_of(operation: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], results: Any) -> int:
    """Of one call of an operation; 0 for those that are not counted. Each multiply-add is two.

    The formulas are torch's own (`torch.utils.flop_counter`); attention counts the whole square of tokens.
    """
    formula = flop_registry.get(operation._overloadpacket)
    if formula is not None:
        return int(formula(*args, **kwargs, out_val=results))
    other = OTHERS.get(name)
    return 0 if other is None else other(args, results)
