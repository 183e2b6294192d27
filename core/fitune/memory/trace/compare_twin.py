"""Whether a memory twin takes what its kernel takes: both are called, and what they keep and take is compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fitune.memory.trace.log import ROUNDING
from fitune.memory.trace.twins import kernel_of
from fitune.plugin.records import MemoryTwin


def compare(twin: MemoryTwin, arguments: Sequence[Any], named: dict[str, Any]) -> None:
    """Raise `AssertionError` where results, kept bytes or (on a GPU) scratch of kernel and twin differ."""
    kernel = kernel_of(twin)
    real, kept = _called(kernel, arguments, named)
    if twin.twin is not None:
        stands, kept_by_twin = _called(twin.twin, arguments, named)
        assert _shapes(stands) == _shapes(real), f"{twin.name}: the twin gives {_shapes(stands)}, not {_shapes(real)}"
        assert kept_by_twin == kept, (
            f"{twin.name}: the twin keeps {kept_by_twin} bytes for the backward pass, not {kept}"
        )
    said = sum(-(-size // ROUNDING) * ROUNDING for size in (twin.scratch(arguments, real) if twin.scratch else ()))
    if any(isinstance(value, Tensor) and value.is_cuda for value in arguments):
        taken = _scratch(kernel, arguments, named)
        assert said == taken, f"{twin.name}: its scratch is said to be {said} bytes, and is {taken}"


def _called(function: Callable[..., Any], arguments: Sequence[Any], named: dict[str, Any]) -> tuple[Any, list[int]]:
    """The results of a call, and the sizes of what it keeps beside its arguments, ascending."""
    given = {v.untyped_storage()._cdata for v in (*arguments, *named.values()) if isinstance(v, Tensor)}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in given:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        results = function(*arguments, **named)
    return results, sorted(kept.values())


def _shapes(results: Any) -> list[tuple[tuple[int, ...], torch.dtype]]:
    return [(tuple(t.shape), t.dtype) for t in tree_leaves(results) if isinstance(t, Tensor)]


def _scratch(function: Callable[..., Any], arguments: Sequence[Any], named: dict[str, Any]) -> int:
    """Bytes of the GPU that a call takes and gives back; a first call may take more, once for all."""
    function(*arguments, **named)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    results = function(*arguments, **named)
    torch.cuda.synchronize()
    left = torch.cuda.memory_allocated()
    del results
    return torch.cuda.max_memory_allocated() - left
