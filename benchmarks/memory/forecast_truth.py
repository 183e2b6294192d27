"""What `forecasts.py` does on a card in a process of its own: make one run and measure it."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from forecast_rows import Json, at_peak, read

WATCHED = 2_000_000
"""Events of the allocator that are kept where blocks at the peak are asked for."""


def truth_of(path: Path, watch: bool) -> Json:
    """Make a run and measure it; with `watch`, its blocks at the peak instead."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    from fitune.compose.parts import compose
    from fitune.plugin.events import EvalReport, StepReport
    from fitune.train.loop import train
    from fitune.train.save import save

    disable_progress_bar()
    recipe = read(path)
    directory = path.parent / "run"
    if watch:
        torch.cuda.memory._record_memory_history(context="alloc", stacks="python", max_entries=WATCHED)
    stages: list[Json] = []
    stats: Counter[str] = Counter()
    try:
        parts = compose(recipe, directory)
        _note(stages, stats, "load")
        losses = []
        for report in train(parts):
            is_step = isinstance(report, StepReport)
            _note(stages, stats, f"step {report.step}" if is_step else f"evaluation after {report.step}")
            losses += [report.loss] if isinstance(report, StepReport | EvalReport) else []
        if watch:
            return {"alive": _alive_in_history()}
        run = [dict(stage) for stage in stages]
        save(parts)
        _note(stages, stats, "save")
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    free, total = torch.cuda.mem_get_info()
    return {
        "allocated": max(stage["allocated"] for stage in run),
        "reserved": max(stage["reserved"] for stage in run),
        "saving": stages[-1]["allocated"],
        "stages": stages,
        "stats": dict(stats),
        "losses": losses,
        "trainable": parts.run.trainable,
        "notices": list(parts.run.plan.notices),
        "card": torch.cuda.get_device_name(),
        "total": total,
        "outside": total - free - torch.cuda.memory_reserved(),
    }


STATS = (
    "requested_bytes.all.peak",
    "active_bytes.all.peak",
    "inactive_split_bytes.all.peak",
    "segment.all.peak",
    "num_alloc_retries",
    "num_ooms",
)


def _note(stages: list[Json], stats: Counter[str], name: str) -> None:
    """Note the most that was used since the stage before."""
    import torch

    seconds = time.perf_counter()
    allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    stages.append({"stage": name, "allocated": allocated, "reserved": reserved, "at": round(seconds, 2)})
    found = torch.cuda.memory_stats()
    for key in STATS:
        stats[key] = max(stats[key], found.get(key, 0))
    torch.cuda.reset_peak_memory_stats()


def _alive_in_history() -> Json:
    """The blocks at the peak by their rounded size: how many, and what made one of them."""
    import torch

    traces = torch.cuda.memory._snapshot()["device_traces"]
    events = [event for event in traces[torch.cuda.current_device()] if event["action"] in ("alloc", "free_requested")]
    sizes: Counter[int] = Counter()
    examples: dict[int, str] = {}
    for index in at_peak([(e["addr"], _rounded(e) if e["action"] == "alloc" else 0) for e in events]):
        size = _rounded(events[index])
        sizes[size] += 1
        examples[size] = _place(events[index].get("frames", ()))
    return {"sizes": dict(sizes), "examples": examples, "events": len(events)}


def _rounded(event: Json) -> int:
    return -(-int(event["size"]) // 512) * 512


def _place(frames: Iterable[Json]) -> str:
    """The innermost lines of Python; none where autograd's own thread allocated."""
    shown = [f"{'/'.join(Path(f['filename']).parts[-2:])}:{f['line']} {f['name']}" for f in frames]
    return " < ".join([line for line in shown if "torch/nn/modules/module.py" not in line][:4]) or "no Python"
