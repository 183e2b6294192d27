"""What processes send each other: how many bytes pass the link of each card for a collective operation.

By rings, as NCCL does it within a host: of N cards each receives N - 1 of N parts to gather, and as much to reduce and
scatter; a sum that all have is the one behind the other (nccl-tests, PERFORMANCE.md, "Bus Bandwidth").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

NAMESPACES = ("c10d.", "_c10d_functional.", "_dtensor.")


def is_collective(name: str) -> bool:
    """Whether an operation, by its name, sends something to other processes, or waits for it."""
    return name.startswith(NAMESPACES)


def sent_by(name: str, arguments: Sequence[Any]) -> int:
    """Bytes that one card sends for a collective, and receives."""
    word = name.partition(".")[2]
    largest = max((sum(t.nbytes for t in _flat(argument)) for argument in arguments), default=0)
    count = _processes(arguments)
    if "wait" in word or "barrier" in word or count == 1:
        return 0
    if name.startswith("_c10d_functional.all_gather") and "_out" not in word:
        return (count - 1) * largest  # its argument is one part, its result all of them
    times = 2 if word.startswith(("allreduce", "all_reduce")) else 1
    return times * (count - 1) * largest // count


def _processes(arguments: Sequence[Any]) -> int:
    """Of the group that an operation is given; of all, where it is told by a name."""
    import torch.distributed as dist

    group = next((one for one in arguments if isinstance(one, torch.ScriptObject)), None)
    return dist.get_world_size() if group is None else dist.ProcessGroup.unbox(group).size()


def _flat(argument: Any) -> Iterator[Tensor]:
    if isinstance(argument, Tensor):
        yield argument
    elif isinstance(argument, (list, tuple)):
        for one in argument:
            yield from _flat(one)
