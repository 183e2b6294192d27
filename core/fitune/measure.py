"""What memory this process and its GPU use, measured."""

from __future__ import annotations

import sys

import torch

from fitune.events import MemoryReport


def measure_context(device: torch.device | str) -> int:
    """Bytes of the GPU that are used outside of this process' caching allocator: its context, and other processes."""
    free, total = torch.cuda.mem_get_info(device)
    return int(total - free - torch.cuda.memory_reserved(device))


def measure_memory(device: torch.device | str) -> MemoryReport:
    """The most memory that this process has used so far."""
    device = torch.device(device)
    if device.type == "cuda":
        return MemoryReport(
            kind="gpu", peak=torch.cuda.max_memory_allocated(device), reserved=torch.cuda.max_memory_reserved(device)
        )
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return MemoryReport(kind="host", peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
