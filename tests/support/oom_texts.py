"""torch's out-of-memory messages in their forms, and what is read of one."""

from __future__ import annotations

from fitune.memory.oom.message import Figure, OutOfMemoryMessage
from support.cuda_messages import GIB, MIB

OLD = (
    "CUDA out of memory. Tried to allocate 172.00 MiB (GPU 0; 22.20 GiB total capacity; 21.06 GiB already allocated; "
    "122.12 MiB free; 21.60 GiB reserved in total by PyTorch) If reserved memory is >> allocated memory try setting "
    "max_split_size_mb to avoid fragmentation.  See documentation for Memory Management and PYTORCH_CUDA_ALLOC_CONF"
)
NEW = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 172.00 MiB. GPU 0 has a total capacity of 22.30 GiB "
    "of which 122.12 MiB is free. Including non-PyTorch memory, this process has 22.18 GiB memory in use. Of the "
    "allocated memory 20.95 GiB is allocated by PyTorch, and 120.50 MiB is reserved by PyTorch but unallocated. If "
    "reserved but unallocated memory is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid "
    "fragmentation.  See documentation for Memory Management  (https://pytorch.org/docs/stable/notes/cuda.html)"
)
ASYNC = """\
torch.OutOfMemoryError: Allocation on device 1 would exceed allowed memory. (out of memory)
Currently allocated     : 4.86 GiB
Requested               : 10.12 GiB
Device limit            : 24.00 GiB
Free (according to CUDA): 0 bytes
PyTorch limit (set by user-supplied memory fraction)
                        : 17179869184.00 GiB
"""
MIB_ERROR, GIB_ERROR = 5243, 5368710  # half of 0.01 of the unit, rounded up


def mib(number: float) -> Figure:
    """What so many MiB, written so, may be."""
    return Figure(bytes=round(number * MIB), error=MIB_ERROR)


def gib(number: float) -> Figure:
    """What so many GiB, written so, may be."""
    return Figure(bytes=round(number * GIB), error=GIB_ERROR)


def said(message: OutOfMemoryMessage) -> dict[str, object]:
    """What a message says, without what it leaves open."""
    names = ("asked", "total", "free", "in_use", "others", "allowed", "allocated", "unallocated", "private", "device")
    return {name: value for name in names if (value := getattr(message, name)) not in (None, ())}
