"""What forecasts say of kernels' memory, against what an H100 measured.

The golden values are benchmarks/memory/kernels.json, by benchmarks/memory/kernels.py, whose own cases are traced here.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fitune.memory.kernels.gpu import Gpu
from fitune.memory.kernels.reduce import reduction
from fitune.memory.kernels.scratch import cublas_workspace, scratch_table
from fitune.memory.trace.log import ROUNDING, MemoryLog
from fitune.memory.trace.patches import as_on_card
from fitune.memory.trace.tracer import Tracer
from support.paths import ROOT

BENCHMARK = ROOT / "benchmarks" / "memory"
MEASURED_WITH = (2, 11)
UNSPLIT = 2**20
"""Bytes that a large block may have over what was asked for: the allocator does not split off less."""

Row = dict[str, Any]
Call = tuple[str, str]

NOT_TRACED = {
    "index by bool": "its result's size depends on values",
    "nonzero": "its result's size depends on values",
    "bincount": "its result's size depends on values",
    "unique": "its result's size depends on values",
    "repeat_interleave by tensor": "its result's size depends on values",
    "PagedAdamW8bit 10 big": "its managed memory needs CUDA",
}
COMPOSED = "_fused_rms_norm"
"""Called by this name it is composed of others without values; models call `rms_norm`, whose rows are exact."""

TOLERANCE = {
    ("conv1d patches", "backward"): 2048,  # cuDNN's workspace for one of the gradients is a little smaller
    ("4 bit, 1 rows, nested", "quantize_4bit"): 1024,  # the first call makes a table that later ones have
    ("4 bit, 2048 rows", "quantize_4bit"): 512,  # a scalar of the table's making
}


@contextlib.contextmanager
def _on_path(directory: Path) -> Iterator[None]:
    sys.path.insert(0, str(directory))
    try:
        yield
    finally:
        sys.path.remove(str(directory))


def _measured() -> dict[str, dict[str, Row]]:
    rows: dict[str, dict[str, Row]] = {}
    for row in json.loads((BENCHMARK / "kernels.json").read_text(encoding="utf-8"))["results"]:
        if "error" not in row:
            rows.setdefault(row["case"], {})[row["call"]] = row
    return rows


MEASURED = _measured()


@pytest.fixture(scope="module")
def cases() -> dict[str, Any]:
    """The benchmark's cases by name."""
    with _on_path(BENCHMARK):
        module = importlib.import_module("kernel_cases")
    found: dict[str, Any] = module.all_cases()  # off the path: bitsandbytes looks for a package named as the benchmark
    return found


class _Product(torch.autograd.Function):
    """Takes a product by cuBLASLt in its backward pass."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        square = grads[0][0]
        return torch.addmm(square[0], square, square)[None]


def _traced(case: Any) -> dict[str, list[tuple[int, int | None]]]:
    """Of each call its allocations (place, bytes) and frees (place, None); what was there before is at place -1."""
    tracer = Tracer(None, scratch=scratch_table((9, 0)), cublas_workspace=cublas_workspace((9, 0)))
    calls: dict[str, list[tuple[int, int | None]]] = {}
    with torch.no_grad(), as_on_card((9, 0), MEASURED_WITH), tracer:
        warm = torch.empty(1, 1, device="meta")
        tracer.enter("forward")
        with torch.enable_grad():  # workspaces of the handles, in both threads, are measured apart
            torch.addmm(warm[0], warm.requires_grad_(), warm).sum().backward()
            warm = torch.empty(1, 1, 1, device="meta", requires_grad=True)
            _Product.apply(warm).sum().backward()  # type: ignore[no-untyped-call]
        running = case("meta")
        label, function = next(running)
        with contextlib.suppress(StopIteration):
            while True:
                start = len(tracer.log.events)
                result = function()
                calls[label] = _events(tracer.log, start)
                label, function = running.send(result)
    return calls


def _events(log: MemoryLog, start: int) -> list[tuple[int, int | None]]:
    places: dict[int, int] = {}
    events: list[tuple[int, int | None]] = []
    for number in log.events[start:]:
        block = log.blocks[abs(number) - 1]
        if not block.bytes:
            continue
        if number > 0:
            places[number] = len(places)
            events.append((places[number], block.bytes))
        else:
            events.append((places.get(-number, -1), None))
    return events


def _measured_events(row: Row) -> list[tuple[int, int | None]]:
    events: list[tuple[int, int | None]] = []
    for word in row["order"].split():
        place = -1 if word == "-before" else int(word[1:])
        events.append((place, row["allocated"][place] if word[0] == "+" else None))
    return events


def _live_and_scratch(events: list[tuple[int, int | None]]) -> tuple[int, int]:
    """Bytes that outlive a call, and most meanwhile less these; frees of what was there before are left out."""
    sizes: dict[int, int] = {}
    live = peak = 0
    for place, size in events:
        if size is not None:
            sizes[place] = -(-size // ROUNDING) * ROUNDING
            live += sizes[place]
        else:
            live -= sizes.get(place, 0)
        peak = max(peak, live)
    return live, peak - live


@pytest.mark.parametrize("name", [name for name in MEASURED if name not in NOT_TRACED])
def test_traced_memory_is_that_of_the_card(name: str, cases: dict[str, Any]) -> None:
    if name not in cases:
        pytest.skip("bitsandbytes is not installed")
    traced = _traced(cases[name])
    assert traced
    for label, row in MEASURED[name].items():
        if name.startswith(COMPOSED) and label == "forward":
            continue
        events = traced[label]
        live, scratch = _live_and_scratch(events)
        sizes = [size for _, size in events if size is not None]
        if "allocations" in row:  # too many to be listed
            assert len(sizes) == row["allocations"]
            assert sizes[: len(row["allocated"])] == row["allocated"]
        elif "printed" in row:
            assert len(row["allocated"]) == 12 or sorted(sizes) == sorted(row["allocated"])
        else:
            wanted = _live_and_scratch(_measured_events(row))
            off = max(abs(live - wanted[0]), abs(scratch - wanted[1]))
            assert off <= TOLERANCE.get((name, label), 0), f"{label}: {(live, scratch)}, measured {wanted}"


@pytest.mark.parametrize(
    "name", [name for name in MEASURED if any("printed" in row for row in MEASURED[name].values())]
)
def test_printed_rows_have_their_live_and_peak_memory(name: str, cases: dict[str, Any]) -> None:
    """Net of what was there before, and but for what the allocator leaves unsplit."""
    tracer = Tracer(None, scratch=scratch_table((9, 0)), cublas_workspace=0)
    with torch.no_grad(), as_on_card((9, 0), MEASURED_WITH), tracer:
        running = cases[name]("meta")
        label, function = next(running)
        with contextlib.suppress(StopIteration):
            while True:
                start = len(tracer.log.events)
                result = function()
                log, row = tracer.log, MEASURED[name][label]
                live = peak = large = 0
                for number in log.events[start:]:
                    block = log.blocks[abs(number) - 1]
                    live += block.rounded if number > 0 else -block.rounded
                    large += block.bytes > UNSPLIT
                    peak = max(peak, live)
                assert abs(live - row["live"]) <= large * UNSPLIT, label
                assert abs(peak - max(live, 0) - row["scratch"]) <= large * UNSPLIT, label
                label, function = running.send(result)


def test_partial_sums_depend_on_the_card() -> None:
    """That of a bias gradient of [2048, 11008], which an H100 measured, and on a card with fewer multiprocessors."""
    h100 = reduction(2048, 11008, 11008, 4, Gpu.of((9, 0)))
    assert h100 == [140902400, 344]
    assert sum(reduction(2048, 11008, 11008, 4, Gpu.of((8, 9)))) < sum(h100)
    assert reduction(16, 11008, 11008, 4, Gpu.of((9, 0))) == []


def test_gradients_that_meet_are_added_in_place() -> None:
    """But not to one that something else holds, and not where a function in Python adds."""

    def added(function: Any) -> int:
        tracer = Tracer(None, scratch={}, cublas_workspace=0)
        with as_on_card((9, 0)), tracer:
            leaf = torch.empty(1024, device="meta", requires_grad=True)
            out = function(leaf * 1.0)
            start = len(tracer.log.blocks)
            torch.autograd.grad(out, leaf, torch.empty_like(out))
        return sum(block.operation == "aten.add.Tensor" for block in tracer.log.blocks[start:])

    def both(tensor: Tensor) -> Tensor:
        return torch.cat((tensor.sin(), tensor.cos()))

    def residual(tensor: Tensor) -> Tensor:
        return tensor + tensor.sin()

    assert added(both) == 0
    assert added(residual) == 1
    assert added(_Twice.apply) == 1


class _Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 1 + grad
