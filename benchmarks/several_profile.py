"""Where the time of a step goes: kernels by torch's profiler, and the host's work for shards by a clock.

For `several.py`, in each process of a run. One step is profiled for its kernels alone, which changes by little how long
it takes; in the step before it a clock runs around what FSDP does on the host.
"""

from __future__ import annotations

import importlib
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

Json = dict[str, Any]

LOOKS = 2
"""Steps that are looked into, behind those that are timed."""

KINDS = {
    "nccl": "exchanges",
    "gemm": "products",
    "nvjet": "products",
    "cutlass": "products",
    "flash": "attention",
    "cudnn": "attention",
    "fmha": "attention",
    "split_with_sizes": "copies of shards",
    "CatArray": "copies of shards",
    "Memcpy": "copies",
    "copy": "copies",
    "Memset": "fills",
}
"""What a part of a kernel's name says of it, the first that fits; the rest is `other`."""

HOOKS = {
    "_fsdp_state.FSDPState": ("_root_pre_forward", "_register_pre_backward_hook", "_root_post_backward_final_callback"),
    "_fsdp_param_group.FSDPParamGroup": (
        "pre_forward",
        "post_forward",
        "pre_backward",
        "post_backward",
        "unshard",
        "wait_for_unshard",
        "reshard",
    ),
}
"""What FSDP does on the host, as far as it is looked up when it is called; the last three are within the others."""


def looked_into(steps: Iterator[object]) -> Json:
    """What two further steps show, the first of the host's work for shards, the second of the card's."""
    found: Json = {}
    for name, look in (("shards on the host", Hooks), ("step", Kernels)):
        try:
            one = look()
            one.start()
            next(steps)
            found[name] = one.stop()
        except Exception as error:  # what was measured before it stands
            found[name] = {"failed": f"{type(error).__name__}: {error}"}
    for _ in steps:
        pass
    return found


class Hooks:
    """A clock around what FSDP does on the host."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._before: list[tuple[Any, str, Any]] = []

    def start(self) -> None:
        """Put it there."""
        for place, names in HOOKS.items():
            module, _, of = place.partition(".")
            owner = getattr(importlib.import_module(f"torch.distributed.fsdp._fully_shard.{module}"), of)
            for name in names:
                made = getattr(owner, name)
                self._before.append((owner, name, made))
                setattr(owner, name, self._timed(name, made))

    def stop(self) -> Json:
        """Take it away; gives calls and milliseconds of each."""
        for owner, name, made in self._before:
            setattr(owner, name, made)
        return {name: [self.calls[name], round(1e3 * self.seconds[name], 3)] for name in self.calls}

    def _timed(self, name: str, made: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            since = time.perf_counter()
            try:
                return made(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - since
                self.calls[name] += 1

        return timed


class Kernels:
    """A profile of what the card does."""

    def __init__(self) -> None:
        from torch.profiler import ProfilerActivity, profile

        self._profile = profile(activities=[ProfilerActivity.CUDA], acc_events=True)

    def start(self) -> None:
        """Begin."""
        self._profile.start()

    def stop(self) -> Json:
        """End; gives milliseconds of the step, by what the card does in them."""
        import torch

        torch.cuda.synchronize()
        self._profile.stop()
        with tempfile.TemporaryDirectory() as home:
            path = Path(home) / "trace.json"
            self._profile.export_chrome_trace(str(path))
            return summary(json.loads(path.read_text(encoding="utf-8"))["traceEvents"])


def summary(events: Iterable[Json]) -> Json:
    """Of a trace: how long it is, and for how long the card computes, exchanges, does both, or nothing."""
    kernels: list[Json] = []
    launched: dict[int, float] = {}
    for event in events:
        if event.get("ph") != "X":
            continue
        category, correlation = event.get("cat", ""), event.get("args", {}).get("correlation")
        if category in ("kernel", "gpu_memcpy", "gpu_memset"):
            kernels.append(event)
        elif category in ("cuda_runtime", "cuda_driver") and correlation is not None:
            launched[correlation] = event["ts"]
    if not kernels:
        return {}
    spans: dict[str, list[tuple[float, float]]] = defaultdict(list)
    kinds: dict[str, float] = defaultdict(float)
    for kernel in kernels:
        kind = next((kind for part, kind in KINDS.items() if part in kernel["name"]), "other")
        spans["exchanges" if kind == "exchanges" else "computes"].append((kernel["ts"], kernel["ts"] + kernel["dur"]))
        kinds[kind] += kernel["dur"]
    late = [k["ts"] - launched[k["args"]["correlation"]] for k in kernels if k["args"]["correlation"] in launched]
    computing, exchanging = covered(spans["computes"]), covered(spans["exchanges"])
    either = covered(spans["computes"] + spans["exchanges"])
    begun, ended = min(k["ts"] for k in kernels), max(k["ts"] + k["dur"] for k in kernels)
    found = {
        "whole": ended - begun,
        "computing": computing,
        "exchanging": exchanging,
        "both": computing + exchanging - either,
        "idle": ended - begun - either,
        "kernels begin behind their launch by (median)": sorted(late)[len(late) // 2] if late else 0.0,
        **{f"sum of {kind}": total for kind, total in sorted(kinds.items())},
    }
    longest: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    for kernel in kernels:
        longest[kernel["name"][:70]][0] += 1
        longest[kernel["name"][:70]][1] += kernel["dur"] / 1e3
    most = sorted(longest.items(), key=lambda one: -one[1][1])[:10]
    told: Json = {name: round(value / 1e3, 3) for name, value in found.items()}
    return {**told, "kernels": len(kernels), "longest": {name: [n, round(ms, 3)] for name, (n, ms) in most}}


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """How long at least one of them lasts."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total
