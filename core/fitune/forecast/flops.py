"""Floating-point operations of what is traced: products of matrices and attention, which are nearly all of a step."""

from __future__ import annotations

from typing import Any

from torch.utils.flop_counter import flop_registry


def flops_of(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any], results: Any) -> int:
    """Of one call of an ATen operation; 0 for those that are not counted. Each multiply-add is two.

    The formulas are torch's own (`torch.utils.flop_counter`); attention counts the whole square of tokens.
    """
    formula = flop_registry.get(operation._overloadpacket)
    if formula is None:
        return 0
    return int(formula(*args, **kwargs, out_val=results))
