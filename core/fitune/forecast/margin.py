"""What a forecast may be wrong by, as measured: `benchmarks/memory/forecasts.json`."""

from __future__ import annotations

SHARE = 0.005
"""Of the reserved bytes."""
LEAST = 32 * 2**20
"""Bytes."""


def margin_of(reserved: int, *, expandable: bool) -> int:
    """Bytes that are left free beside a forecast of so many reserved ones."""
    return max(LEAST, int(reserved * SHARE))
