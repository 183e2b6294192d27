"""What is left free beside a forecast: the most that one was too low by, measured on an H100.

`benchmarks/memory/forecasts.json` holds 55 runs. With segments that grow, a run reserved at most 0.15 % more than was
forecast, or 40 MiB (a small one in float32), and on a base model in NF4 0.93 %; with segments of fixed size 1.72 %.
"""

from __future__ import annotations

GROWING, QUANTIZED, FIXED = 0.0025, 0.01, 0.02
"""Shares of the reserved bytes: with segments that grow, with those and a quantised base model, with others."""
LEAST = 64 * 2**20
"""Bytes."""


def margin_of(reserved: int, *, expandable: bool, quantized: bool) -> int:
    """Bytes that are left free beside a forecast of so many reserved ones."""
    share = (QUANTIZED if quantized else GROWING) if expandable else FIXED
    return max(LEAST, int(reserved * share))
