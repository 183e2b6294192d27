"""Where a step's time on the GPU goes, from a trace that torch's profiler wrote."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

Json = dict[str, Any]
PARTS: tuple[tuple[str, str], ...] = (
    ("attention", r"flash|fmha|sdpa|attention|attn"),
    ("loss", r"cross_?entropy|softmax|nll_loss|logsumexp|nllloss"),
    ("norms and pointwise", r"^triton_(poi|red|per)_"),
    ("4 bits", r"dequant|quantize_?blockwise"),
    ("LoRA", r"lora"),
    ("products", r"nvjet|gemm|cutlass|xmma|splitk|cublas|gemv|matmul|tem_fused|scaled_mm"),
    ("optimizer", r"multi_tensor|adam|lpnorm"),
    ("copies", r"memcpy|memset|direct_copy|copy_kernel|catarray|fillfunctor"),
    ("norms and pointwise", r"elementwise|norm|rms|rope|rotary|[sg][wie]_?glu|silu|gelu|triton_|vectorized"),
    ("norms and pointwise", r"reduce|index|cucompute|gammabeta|_d?fg_kernel|pointwise"),
)
"""Parts and the kernels' names of each, of which the first that matches counts; what matches none is "other"."""
SMALL = 0.4
"""A product counts as LoRA's if it takes less of this than the base's smallest does at the card's measured rate."""
KEPT = 50
"""Kernels, those that take most, that are kept by name."""


def parts(trace: Path, smallest: float, micro_batches: int) -> Json | None:
    """Milliseconds of a micro-batch by part; `smallest` are the seconds of the base's smallest product.

    None where no kernel is in the trace. `gaps` is the time in which no kernel ran between the first and the last.
    """
    events = json.loads(trace.read_text(encoding="utf-8", errors="replace"))["traceEvents"]
    kernels = [event for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    if not kernels:
        return None
    found: dict[str, float] = {}
    names: dict[str, list[float]] = {}
    for event in kernels:
        part = _part(event["name"], event["dur"] * 1e-6, smallest)
        found[part] = found.get(part, 0.0) + event["dur"]
        names.setdefault(event["name"][:160], []).append(event["dur"])
    begin, end = min(event["ts"] for event in kernels), max(event["ts"] + event["dur"] for event in kernels)
    busy = _union([(event["ts"], event["ts"] + event["dur"]) for event in kernels])

    def milliseconds(microseconds: float) -> float:
        return round(microseconds / 1000 / micro_batches, 3)

    most = sorted(names.items(), key=lambda one: -sum(one[1]))[:KEPT]
    return {
        "parts": {name: milliseconds(time) for name, time in sorted(found.items(), key=lambda one: -one[1])},
        "busy": milliseconds(busy),
        "gaps": milliseconds(end - begin - busy),
        "kernels": round(len(kernels) / micro_batches, 1),
        "by_name": [{"name": name, "calls": len(times), "ms": milliseconds(sum(times))} for name, times in most],
    }


def _part(name: str, seconds: float, smallest: float) -> str:
    part = next((part for part, pattern in PARTS if re.search(pattern, name, re.IGNORECASE)), "other")
    return "LoRA" if part == "products" and seconds < SMALL * smallest else part


def _union(spans: list[tuple[float, float]]) -> float:
    """Length of what at least one of these spans covers."""
    covered, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        covered += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return covered
