"""What CUDA kernels take from the caching allocator: outputs, scratch inside ops, workspaces, the context.

    python benchmarks/memory/kernels.py --out benchmarks/memory/kernels.json

The forecast traces a step with fake tensors, which show what an op returns and not what its kernel takes meanwhile.
Each case here runs twice on the card: the first time takes what is made once (`first`, where it differs), the second is
measured; some run a third time under the profiler, for the kernels' names. `allocated` are bytes as asked of the
allocator, in order, and `kept` the places of those that outlive the call; `live` and `scratch` (the peak less what was
live before and what is live after) are as it counts them, in blocks of 512. The same case with fake tensors on the CPU
stands beside it: where `scratch` or `live` differ, the forecast needs to be told. The printed columns are live,
scratch, the fakes' two (or the context), and the sizes allocated.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import fnmatch
import gc
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from kernel_attention import BF16, FP16, FP32, Case
from kernel_cases import all_cases
from kernel_measures import Row, allocated, faked, profiled, steps
from torch._subclasses.fake_tensor import FakeTensorMode

WATCHED = ("sdpa", "varlen", "cudnn", "mm", "linear", "embedding", "grouped", "conv", "_fused_rms", "_softmax", "4 bit")
"""Beginnings of the names of cases that the profiler watches, which takes a while."""


def main() -> None:
    """Measure every case and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--only", default="*", help="cases whose names match, e.g. 'sdpa*'")
    parser.add_argument("--list", action="store_true", help="print the cases' names and stop")
    parser.add_argument("--fakes", action="store_true", help="only the fake tensors' side, which needs no card")
    parser.add_argument("--no-kernels", action="store_true", help="without the profiler's names of kernels")
    arguments = parser.parse_args()
    here = Path(__file__).resolve().parent  # transformers and bitsandbytes look for a package of this file's name
    sys.path[:] = [place for place in sys.path if Path(place).resolve() != here]
    cases = {name: case for name, case in all_cases().items() if fnmatch.fnmatch(name, arguments.only)}
    if arguments.list:
        print("\n".join(cases))
        return
    if not arguments.fakes and not torch.cuda.is_available():
        sys.exit("no CUDA device is found by torch: run this on a machine that has one, or ask for --list or --fakes")
    torch.set_grad_enabled(False)
    gc.collect()
    gc.freeze()  # collecting after every case is slow with all of torch to look through
    start = time.perf_counter()
    about: Row = {} if arguments.fakes else {"card": card(), "once": once()}
    rows: list[Row] = []
    for name, case in cases.items():
        rows += measured(name, case, arguments)
    about |= {"versions": versions(), "date": datetime.date.today().isoformat()}
    about["command"] = "python benchmarks/memory/kernels.py --out FILE"
    if not arguments.fakes:
        about["context_at_end"] = context()
    about["seconds"] = round(time.perf_counter() - start)
    write(arguments.out, about, rows)


def measured(name: str, case: Case, arguments: argparse.Namespace) -> list[Row]:
    """The rows of one case: one a call, or one that says what failed."""
    fake, failure = attempt(lambda: steps(case, "cpu", faked, FakeTensorMode()))
    faked_rows = {row["call"]: row for row in fake}
    if arguments.fakes:
        rows = [{"case": name, **row} for row in fake]
        return say([*rows, *[{"case": name, "error": failure}] * bool(failure)])
    first, _ = attempt(lambda: steps(case, "cuda", allocated))
    rows, failure = attempt(lambda: steps(case, "cuda", allocated))
    if not arguments.no_kernels and not failure and name.startswith(WATCHED):
        names, _ = attempt(lambda: steps(case, "cuda", profiled))
        for row, kernels in zip(rows, names, strict=False):
            row["kernels"] = kernels["kernels"]
    for row, before in zip(rows, first, strict=False):
        if before["allocated"] != row["allocated"]:
            row["first"] = {key: before[key] for key in ("live", "scratch", "allocated", "order")}
    for row in rows:
        beside = faked_rows.get(row["call"])
        row["fake"] = {key: beside[key] for key in ("live", "scratch")} if beside else None
    gc.collect()
    torch.cuda.empty_cache()
    return say([*({"case": name, **row} for row in rows), *[{"case": name, "error": failure}] * bool(failure)])


def attempt(run: Callable[[], tuple[list[Row], str]]) -> tuple[list[Row], str]:
    """The rows and failure of a run, the memory of which is given back first."""
    gc.collect()
    return run()


def context() -> int:
    """Bytes of the card in use that the caching allocator did not reserve; other processes' are among them."""
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return total - free - torch.cuda.memory_reserved()


def once() -> list[Row]:
    """What is taken once a process: the context as it grows, and the workspaces of cuBLAS a thread."""
    torch.cuda.init()
    rows: list[Row] = [{"after": "init", "context": context()}]
    data: dict[torch.dtype, Any] = {}

    def make() -> None:
        for dtype in (BF16, FP16, FP32):
            data[dtype] = [torch.randn(1024, 1024, device="cuda", dtype=dtype) for _ in range(2)]

    def backward(dtype: torch.dtype, bias: bool) -> Any:
        x, w = (tensor.detach().requires_grad_() for tensor in data[dtype])
        b = w.detach()[0].clone().requires_grad_() if bias else None
        with torch.enable_grad():
            y = torch.nn.functional.linear(x, w, b)
        return torch.autograd.grad(y, [leaf for leaf in (x, w, b) if leaf is not None], torch.ones_like(y))

    def attention() -> Any:
        heads = data[BF16][0].view(1, 16, 512, 128)
        return torch.nn.functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)

    def cudnn() -> Any:
        heads = data[BF16][0].view(1, 16, 512, 128)
        return torch.ops.aten._scaled_dot_product_cudnn_attention(heads, heads, heads, None, True, 0.0, True)

    def side_stream() -> Any:
        with torch.cuda.stream(torch.cuda.Stream()):
            return torch.mm(*data[BF16])

    calls: list[tuple[str, Callable[[], Any]]] = [
        ("first kernels", make),
        ("mm bfloat16", lambda: torch.mm(*data[BF16])),
        ("mm bfloat16 again", lambda: torch.mm(*data[BF16])),
        ("mm float16", lambda: torch.mm(*data[FP16])),
        ("mm float32", lambda: torch.mm(*data[FP32])),
        ("bmm bfloat16", lambda: torch.bmm(*(tensor[None] for tensor in data[BF16]))),
        ("addmm with bias (cublasLt)", lambda: torch.addmm(data[BF16][0][0], *data[BF16])),
        ("addmm with bias again", lambda: torch.addmm(data[BF16][0][0], *data[BF16])),
        ("linear without bias, and its backward in the autograd thread", lambda: backward(BF16, False)),
        ("linear with bias, and its backward", lambda: backward(BF16, True)),
        ("linear with bias, and its backward again", lambda: backward(BF16, True)),
        ("mm on another stream", side_stream),
        ("scaled_dot_product_attention", attention),
        ("scaled_dot_product_attention of cuDNN", cudnn),
    ]
    for label, function in calls:
        try:
            result, row = allocated(function)
        except Exception as problem:
            rows.append({"after": label, "error": f"{type(problem).__name__}: {problem}"[:300]})
            continue
        del result
        rows.append({"after": label, "context": context(), **row})
    return say(rows)


def card() -> Row:
    """The card and what torch knows of it."""
    about = torch.cuda.get_device_properties(0)
    settings = {
        name: getattr(torch.backends.cuda, name)() for name in dir(torch.backends.cuda) if name.endswith("_sdp_enabled")
    }
    return {
        "name": about.name,
        "capability": f"{about.major}.{about.minor}",
        "total_memory": about.total_memory,
        "multiprocessors": about.multi_processor_count,
        "cudnn": torch.backends.cudnn.version(),
        "allow_tf32": torch.backends.cuda.matmul.allow_tf32,
        "sdp": settings,
    }


def versions() -> dict[str, str]:
    """Of what takes part."""
    found = {"torch": torch.__version__, "python": sys.version.split()[0]}
    for package in ("transformers", "bitsandbytes", "triton"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def say(rows: list[Row]) -> list[Row]:
    """Print a line a row, and hand the rows on."""
    for row in rows:
        name = row.get("after") or f"{row['case']} | {row.get('call', '')}"
        if "error" in row:
            print(f"{name:90} {row['error']}", flush=True)
            continue
        fake = row.get("fake")
        told = f"{row.get('live', 0):>12} {row.get('scratch', 0):>12}"
        beside = f"{fake['live']:>12} {fake['scratch']:>12}" if fake else f"{row.get('context', ''):>12}"
        print(f"{name:90} {told} {beside}  {' '.join(map(str, row.get('allocated', [])[:12]))}", flush=True)
    return rows


def write(path: Path, about: Row, rows: list[Row]) -> None:
    """JSON with a line a row."""
    head = {key: value for key, value in about.items() if key != "once"}
    parts = [json.dumps(head, indent=2)[:-2]]
    for name, table in (("once", about.get("once", [])), ("results", rows)):
        lines = ",\n".join("    " + json.dumps(row) for row in table)
        parts.append(f'  "{name}": [\n{lines}\n  ]')
    path.write_text(",\n".join(parts) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
