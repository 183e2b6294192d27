"""The package flash-attn-4 as torch's registry reads it (`torch/nn/attention/_fa4.py` of torch 2.11 to 2.13).

torch takes a forward pass's output and sums, and a backward pass's three gradients; the package (by its source of
August 2026, and on an H100) gives more behind them, at which torch stops. Only what torch takes is handed on.
To be imported by `flash_attention.switch` alone.
"""

from __future__ import annotations

import importlib
from typing import Any

interface = importlib.import_module("flash_attn.cute.interface")  # or else torch's registry is told why not


def _flash_attn_fwd(*given: Any, **named: Any) -> tuple[Any, ...]:
    """Output and logarithms of sums, as the package computes them."""
    results: tuple[Any, ...] = interface._flash_attn_fwd(*given, **named)
    return results[:2]


def _flash_attn_bwd(*given: Any, **named: Any) -> tuple[Any, ...]:
    """Gradients of queries, keys and values, as the package computes them."""
    results: tuple[Any, ...] = interface._flash_attn_bwd(*given, **named)
    return results[:3]
