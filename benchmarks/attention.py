"""Attention on one card by each implementation that is there: milliseconds, rates, and scratch.

    python benchmarks/attention.py --out benchmarks/attention.json        (about a minute of a card)

Rows by `F.scaled_dot_product_attention`, as torch chooses (cuDNN on Hopper) and by FlashAttention; packed rows by
`torch.nn.attention.varlen`; FlashAttention is torch's own (FA2), and FA3 and FA4 where their packages are installed. A
time is the median of 20 calls after 5, the scratch the highest that the allocator held in a call less what was there
before and what the call gave back. Beside the scratch of packed rows stands what a forecast says of it. Operations are
counted as the causal half: 4 B H S S D / 2 forward, 2.5 times that backward, a packed row by its documents.

Shapes: B rows, S tokens, H heads, K heads of keys and values, D head size, T tokens of all documents.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).parent / "fit"))
from measure import Json, circumstances

from fitune.compose import flash_attention, varlen
from fitune.memory.kernels.flash import flash_table
from fitune.memory.kernels.gpu import Gpu

WARM_UP, TIMES = 5, 20
ROWS = ((1, 1024, 32, 32), (1, 4096, 32, 32), (1, 4096, 32, 8), (1, 16384, 32, 8), (1, 65536, 32, 8))
"""B, S, H, K; D is 128."""
DOCUMENTS = ((4096, 256), (4096, 1024), (16384, 1024), (4096, 4096))
"""T and the tokens of a document."""
D = 128


def main() -> None:
    """Measure all, write, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    written: Json = {**circumstances(0.0, "python benchmarks/attention.py"), "rows": [], "packed": []}
    for name, by in implementations():
        for shape in ROWS:
            written["rows"].append({"by": name, **row(shape, by)})
            print(written["rows"][-1], flush=True)
        arguments.out.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    for name in ("FA2", "FA3", "FA4"):
        why = flash_attention.switch(name)
        for documents in DOCUMENTS if not why else ():
            written["packed"].append({"by": name, **packed(name, documents)})
            print(written["packed"][-1], flush=True)
        if why:
            written["packed"].append({"by": name, "not there": why})
            print(name, why, flush=True)
        arguments.out.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    flash_attention.switch("FA2")


def implementations() -> Iterator[tuple[str, SDPBackend | None]]:
    """Each by name, at work while it is the last one given, with the backend to ask for."""
    yield "torch's choice", None
    for name in ("FA2", "FA3", "FA4"):
        if not flash_attention.switch(name):
            yield name, SDPBackend.FLASH_ATTENTION
    flash_attention.switch("FA2")


def row(shape: tuple[int, int, int, int], by: SDPBackend | None) -> Json:
    """Whole rows of one length."""
    B, S, H, K = shape
    query, key, value = (
        torch.randn(B, S, heads, D, device="cuda", dtype=torch.bfloat16).transpose(1, 2).requires_grad_()
        for heads in (H, K, K)
    )
    with nullcontext() if by is None else sdpa_kernel(by):
        found = measured(
            lambda: F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=K != H),
            (query, key, value),
            2.0 * B * H * S * S * D,
        )
    return {"B": B, "S": S, "H": H, "K": K, **found}


def packed(name: str, shape: tuple[int, int]) -> Json:
    """One row of equal documents."""
    T, document = shape
    H, K = 32, 8
    query, key, value = (
        torch.randn(T, heads, D, device="cuda", dtype=torch.bfloat16).requires_grad_() for heads in (H, K, K)
    )
    ends = torch.arange(0, T + 1, document, device="cuda", dtype=torch.int32)
    found = measured(
        lambda: varlen.KERNEL(query, key, value, ends, document, scale=D**-0.5, window=None),
        (query, key, value),
        2.0 * H * T * document * D,
    )
    told = forecast(name, query, key, ends, document)
    return {"T": T, "document": document, "H": H, "K": K, **found, **told}


def forecast(name: str, query: torch.Tensor, key: torch.Tensor, ends: torch.Tensor, longest: int) -> Json:
    """Scratch of a packed row by the forecast, bytes rounded as the allocator does; only of FA3 and FA4."""
    said = torch.cuda.get_device_properties(0)
    gpu = Gpu(capability=(said.major, said.minor), multiprocessors=said.multi_processor_count, flash=name)
    table = flash_table(gpu, (name,))
    if not table:
        return {}
    arguments = {
        "forward": ("torch_attn._varlen_attn.default", [query, key, key, ends, ends, longest, longest, True]),
        "backward": (
            "torch_attn._varlen_attn_backward.default",
            [query, query, key, key, query, query, ends, ends, longest, longest, True],
        ),
    }
    return {
        f"{way}_scratch_forecast": sum(-(-size // 512) * 512 for size in table[operation](given, None))
        for way, (operation, given) in arguments.items()
    }


def measured(call: Callable[[], torch.Tensor], inputs: tuple[torch.Tensor, ...], operations: float) -> Json:
    """Milliseconds, operations a second and scratch of both directions. An implementation that does not take the
    problem is told as such.
    """
    try:
        forward = median_ms(call)
        out = call()
        grad = torch.randn_like(out)

        def back() -> Any:
            return torch.autograd.grad(out, inputs, grad, retain_graph=True)

        backward = median_ms(back)
        scratch = {"forward_scratch": scratch_of(call), "backward_scratch": scratch_of(back)}
    except (RuntimeError, TypeError, AssertionError, ValueError, NotImplementedError) as error:
        return {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"}
    return {
        "forward_ms": round(forward, 4),
        "backward_ms": round(backward, 4),
        "forward_tflops": round(operations / forward / 1e9, 1),
        "backward_tflops": round(2.5 * operations / backward / 1e9, 1),
        **scratch,
    }


def median_ms(call: Callable[[], Any]) -> float:
    """Of `TIMES` calls, by the card's own clock."""
    times: list[float] = []
    for at in range(WARM_UP + TIMES):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(200_000)  # so that what the host does before a launch is not counted
        start.record()
        call()
        end.record()
        end.synchronize()
        if at >= WARM_UP:
            times.append(start.elapsed_time(end))
    return statistics.median(times)


def scratch_of(call: Callable[[], Any]) -> int:
    """Bytes at the highest, less what was there before and what stays of the results."""
    with peaks() as before:
        result = call()
        torch.cuda.synchronize()
        stays = torch.cuda.memory_allocated() - before
        highest = torch.cuda.max_memory_allocated() - before
    del result
    return highest - stays


@contextmanager
def peaks() -> Iterator[int]:
    """The bytes that are allocated now; the allocator's highest counts from here."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    yield torch.cuda.memory_allocated()


if __name__ == "__main__":
    main()
