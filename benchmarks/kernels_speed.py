"""How near the fast path's kernels come to the card's bandwidth, at the shapes of DeepSeek-LLM 7B.

    python benchmarks/kernels_speed.py --out benchmarks/kernels_speed.json

Each operation runs on one GPU in bfloat16, behind a write of 512 MB that clears the card's cache and gives the host
time to launch; the median of its times is set against a copy's, measured in the same way in the same run. Bytes are
those of inputs and results, each once, and logits' twice where they are read twice. The host's time is that of a call
on one row.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fitune_plugins.speed import kernels

Json = dict[str, Any]
TOKENS, HIDDEN, INTERMEDIATE, VOCABULARY, HEADS, WIDTH = 4096, 4096, 11008, 102_400, 32, 128
LOSS_ROWS = 2048
"""Rows of logits that are made at one time."""
REPEATS, HOST_CALLS = 40, 300
CLEARED = 512 << 20
EPS = 1e-6


@dataclass(frozen=True, slots=True)
class Work:
    """A call, and how often its first input is read and written (others are once)."""

    name: str
    call: Callable[..., Any]
    inputs: Callable[[int], tuple[Any, ...]]
    first: int = 1


def numbers(rows: int, columns: int) -> Tensor:
    """`[rows, columns]`."""
    return torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16)


def low(rows: int, columns: int, ranks: int) -> tuple[Tensor | None, Tensor | None]:
    """Both halves of a low-rank part: columns of products padded to 16, and rows of a stacked matrix."""
    return (numbers(rows, 16)[:, :ranks], numbers(ranks, columns)) if ranks else (None, None)


def works() -> Iterator[Work]:
    """All that is measured; `inputs` take a number of rows."""
    weight, head = numbers(1, HIDDEN)[0], numbers(1, WIDTH)[0]
    full = HEADS * WIDTH
    llama = (False, True)
    yield Work("norm", kernels.norm, lambda m: (numbers(m, HIDDEN), weight, EPS, *llama))
    for ranks in (0, 4, 8, 12):
        yield Work(
            f"norm_backward r={ranks}",
            kernels.norm_backward,
            lambda m, r=ranks: (  # type: ignore[misc]
                *(numbers(m, HIDDEN), *low(m, HIDDEN, r), numbers(m, HIDDEN), weight, EPS),
                *(*llama, numbers(m, HIDDEN), True),
            ),
        )
    for ranks, normed in ((0, False), (4, False), (4, True)):
        yield Work(
            f"rope r={ranks} normed={normed}",
            kernels.rope,
            lambda m, r=ranks, n=normed: (  # type: ignore[misc]
                *(numbers(m, full), numbers(m, full), numbers(m, WIDTH), numbers(m, WIDTH)),
                *(*low(m, full, r), *low(m, full, r), *((head, head) if n else (None, None)), EPS, *llama, WIDTH),
            ),
        )
    for ranks, normed in ((0, False), (4, True)):
        yield Work(
            f"rope_backward r={ranks} normed={normed}",
            kernels.rope_backward,
            lambda m, r=ranks, n=normed: (  # type: ignore[misc]
                *(numbers(HEADS * m, WIDTH).view(HEADS, m, WIDTH).transpose(0, 1) for _ in range(3)),
                *(numbers(m, WIDTH), numbers(m, WIDTH), *((numbers(m, full), numbers(m, full)) if n else (None, None))),
                *(*low(m, full, r), *low(m, full, r), *((head, head) if n else (None, None)), EPS, *llama, WIDTH),
            ),
        )
    for ranks in (0, 4):
        yield Work(f"gated silu r={ranks}", kernels.gated, partial(factors, ranks))
        yield Work(
            f"gated_backward silu r={ranks}",
            kernels.gated_backward,
            lambda m, r=ranks: (numbers(m, INTERMEDIATE), *low(m, INTERMEDIATE, r), *factors(r, m), True),  # type: ignore[misc]
        )
        yield Work(
            f"onto_residual_ r={ranks}",
            kernels.onto_residual_,
            lambda m, r=ranks: (numbers(m, HIDDEN), numbers(m, HIDDEN), *low(m, HIDDEN, r)),  # type: ignore[misc]
            first=2,
        )
    for cap in (0.0, 30.0):
        yield Work(f"cross_entropy_ cap={cap}", kernels.cross_entropy_, partial(logits, cap), first=3)
    for columns, width in ((16, HIDDEN), (16, INTERMEDIATE), (48, HIDDEN)):
        yield Work(
            f"skinny {width} to {columns}",
            kernels.skinny,
            lambda m, c=columns, w=width: (numbers(m, w), numbers(c, w), 2.0),  # type: ignore[misc]
        )


def factors(ranks: int, rows: int) -> tuple[Any, ...]:
    """What `gated` takes."""
    lows = (*low(rows, INTERMEDIATE, ranks), *low(rows, INTERMEDIATE, ranks))
    return (numbers(rows, INTERMEDIATE), numbers(rows, INTERMEDIATE), *lows, "silu")


def logits(cap: float, rows: int) -> tuple[Any, ...]:
    """What `cross_entropy_` takes."""
    rows = min(rows, LOSS_ROWS)
    return numbers(rows, VOCABULARY), torch.randint(0, VOCABULARY, (rows,), device="cuda"), cap


def milliseconds(call: Callable[[], Any]) -> float:
    """Median of a call's time on the GPU, with the card's cache cleared before each."""
    clear = torch.empty(CLEARED, dtype=torch.int8, device="cuda")
    times: list[float] = []
    for _ in range(REPEATS):
        clear.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(float(begin.elapsed_time(end)))
    return statistics.median(times)


def size(values: Any) -> int:
    """Bytes of tensors, of those in a tuple too."""
    if isinstance(values, tuple):
        return sum(size(value) for value in values)
    return values.numel() * values.element_size() if isinstance(values, Tensor) else 0


def host_microseconds(work: Work) -> float:
    """Of a call on one row: Python, the dispatcher and Triton's launch."""
    inputs = work.inputs(1)
    work.call(*inputs)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(HOST_CALLS):
        work.call(*inputs)
    spent = time.perf_counter() - begin
    torch.cuda.synchronize()
    return spent / HOST_CALLS * 1e6


def measured(work: Work, copy: float) -> Json:
    """A row of the result."""
    inputs = work.inputs(TOKENS)
    begin = time.perf_counter()
    moved = size(inputs) + (work.first - 1) * size(inputs[0]) + size(work.call(*inputs))
    torch.cuda.synchronize()
    first = time.perf_counter() - begin
    ms = milliseconds(lambda: work.call(*inputs))
    rate = moved / ms / 1e6
    row: Json = {"operation": work.name, "ms": round(ms, 4), "mb": round(moved / 1e6, 1), "gb_s": round(rate)}
    row |= {"of_copy": round(rate / copy, 3), "host_us": round(host_microseconds(work), 1), "first_s": round(first, 2)}
    return row


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--only", default="", help="operations whose name begins so")
    given = parser.parse_args()
    source = numbers(TOKENS, 4 * INTERMEDIATE)
    target = torch.empty_like(source)
    copy = 2 * size(source) / milliseconds(lambda: target.copy_(source)) / 1e6
    print(f"copy {copy:.0f} GB/s", flush=True)
    rows = []
    for work in works():
        if work.name.startswith(given.only):
            rows.append(measured(work, copy))
            print(json.dumps(rows[-1]), flush=True)
    import triton

    made = {
        "card": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "copy_gb_s": round(copy),
        "operations": rows,
    }
    given.out.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
