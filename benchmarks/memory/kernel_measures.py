"""How `kernels.py` measures a call: on the card, by the allocator's record or the profiler, and with fake tensors."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from typing import Any

import torch
from kernel_attention import Case
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Row = dict[str, Any]
Measure = Callable[[Callable[[], Any]], tuple[Any, Row]]
MOST = 200
"""Allocations of one op that are listed; beyond, only their number is."""


def steps(
    case: Case, device: str, measure: Measure, mode: contextlib.AbstractContextManager[Any] | None = None
) -> tuple[list[Row], str]:
    """Run a case's calls under `measure`; what was measured before a failure is kept."""
    rows: list[Row] = []
    torch.manual_seed(0)
    try:
        with mode or contextlib.nullcontext():
            running = case(device)
            label, function = next(running)
            while True:
                result, row = measure(function)
                rows.append({"call": label, **row})
                label, function = running.send(result)
    except StopIteration:
        return rows, ""
    except Exception as problem:  # one op that a card lacks must not end the others
        return rows, f"{type(problem).__name__}: {problem}".strip().split("\n")[0][:300]


def allocated(function: Callable[[], Any]) -> tuple[Any, Row]:
    """Call it on the card, with the allocator's own record of what happened."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.memory._record_memory_history("all", context=None, stacks="python")
    known = len(trace())
    try:
        result = function()
        torch.cuda.synchronize()
        events = trace()[known:]
    finally:
        torch.cuda.memory._record_memory_history(None)
    live = torch.cuda.memory_allocated() - before
    peak = torch.cuda.max_memory_allocated() - before
    return result, {"live": live, "scratch": peak - max(live, 0), **ordered(events)}


def trace() -> list[Row]:
    """The allocator's events on this card so far."""
    traces: list[list[Row]] = torch.cuda.memory._snapshot()["device_traces"]
    return list(traces[torch.cuda.current_device()])


def ordered(events: list[Row]) -> Row:
    """Sizes in order; `order` tells of each when it was taken (+) and given back (-), by its place in `allocated`.

    Blocks from before the call that it frees, as a graph's saved tensors in a backward, are `freed_before`, in bytes.
    """
    sizes: list[int] = []
    held: dict[int, int] = {}
    order: list[str] = []
    freed_before = 0
    for event in events:
        if event["action"] == "alloc":
            held[event["addr"]] = len(sizes)
            order.append(f"+{len(sizes)}")
            sizes.append(event["size"])
        elif event["action"] == "free_requested":
            place = held.pop(event["addr"], None)
            if place is None:
                freed_before += event["size"]
            order.append("-before" if place is None else f"-{place}")
    row: Row = {"allocated": sizes[:MOST], "kept": sorted(held.values())[:MOST], "order": " ".join(order[: 2 * MOST])}
    if len(sizes) > MOST:
        row["allocations"] = len(sizes)
    if freed_before:
        row["freed_before"] = freed_before
    return row


class Storages(TorchDispatchMode):
    """Live and peak bytes of storages that ops make, in blocks of 512."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self.known: dict[int, weakref.ref[Any]] = {}

    def know(self, tensors: Any, *, count: bool = True) -> None:
        """Note storages not seen before: counted if an op made them, not if they were there."""
        for tensor in tree_leaves(tensors):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            seen = self.known.get(id(storage))
            if seen is not None and seen() is storage:
                continue
            size = -(-storage.nbytes() // 512) * 512

            def gone(_: Any, size: int = size) -> None:
                self.live -= size

            self.known[id(storage)] = weakref.ref(storage, gone)
            self.live += size if count else 0
            self.peak = max(self.peak, self.live)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the op; what it was given and nobody made was there before."""
        self.know((args, kwargs), count=False)
        result = func(*args, **(kwargs or {}))
        self.know(result)
        return result


def faked(function: Callable[[], Any]) -> tuple[Any, Row]:
    """Call it with fake tensors: what a trace sees of it."""
    with Storages() as storages:
        result = function()
    return result, {"live": storages.live, "scratch": storages.peak - max(storages.live, 0)}


def profiled(function: Callable[[], Any]) -> tuple[Any, Row]:
    """Call it under the profiler, for the kernels' names."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        result = function()
        torch.cuda.synchronize()
    names = [event.name for event in profile.events() if str(event.device_type).endswith("CUDA")]
    return result, {"kernels": [name[:160] for name in dict.fromkeys(names)][:12]}
