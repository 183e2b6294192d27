"""Sizes in bytes, and how people read them."""

from __future__ import annotations

MIB, GIB = 2**20, 2**30


def gib(size: float, digits: int = 2) -> str:
    """Bytes as GiB, with so many digits behind the point."""
    return f"{size / GIB:.{digits}f} GiB"
