"""How torch writes what its allocator says."""

from __future__ import annotations

KIB, MIB, GIB = 2**10, 2**20, 2**30


def format_size(size: int) -> str:
    """torch's own (`format_size`, CUDACachingAllocator.cpp)."""
    if size <= KIB:
        return f"{size} bytes"
    for name, unit, most in (("KiB", KIB, MIB), ("MiB", MIB, GIB)):
        if size <= most:
            return f"{size / unit:.2f} {name}"
    return f"{size / GIB:.2f} GiB"
