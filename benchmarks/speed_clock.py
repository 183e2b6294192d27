"""The clock of `benchmarks/speed.py`: the same for every stack, called at the end of each step.

A step's time is what passes from one end of a step to the next, each taken once the GPU has nothing left to do. After
the timed steps one more is profiled, so that the profiler slows none that is timed.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any


class Clock:
    """Writes what it has seen to a file at every step, so that a run that is cut keeps it."""

    def __init__(self, out: Path, timed: int) -> None:
        """`timed` steps are timed, the one behind them is profiled."""
        self.out, self.timed = out, timed
        self.found: dict[str, Any] = {"ends": [], "tokens": [], "loss": []}
        self._profiler: Any = None

    def step_done(self, tokens: int, loss: float | None = None) -> None:
        """A step has ended; `tokens` are those of its rows that are not padding."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.time()
        if self._profiler is not None:
            self._end_profile()
        elif len(self.found["ends"]) < self.timed:
            self.found["ends"].append(now)
            self.found["tokens"].append(tokens)
            self.found["loss"].append(loss)
            if torch.cuda.is_available():
                self.found["allocated"] = torch.cuda.max_memory_allocated()
                self.found["reserved"] = torch.cuda.max_memory_reserved()
                self.found["retries"] = torch.cuda.memory_stats()["num_alloc_retries"]
            self.write()
            if len(self.found["ends"]) == self.timed:
                self._begin_profile()

    def tell(self, **values: Any) -> None:
        """Add to what is written."""
        self.found.update(values)
        self.write()

    def write(self) -> None:
        """Write it so that the file is whole at any time."""
        beside = self.out.with_suffix(".part")
        beside.write_text(json.dumps(self.found), encoding="utf-8")
        beside.replace(self.out)

    def _begin_profile(self) -> None:
        from torch.profiler import ProfilerActivity, profile, supported_activities

        if ProfilerActivity.CUDA in supported_activities():
            self._profiler = profile(activities=[ProfilerActivity.CUDA])
            self._profiler.start()

    def _end_profile(self) -> None:
        self._profiler.stop()
        self._profiler.export_chrome_trace(str(self.out.with_suffix(".trace")))
        self._profiler = None


def limit(gib: float) -> None:
    """Let torch's allocator take so much of the card and no more."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(gib * 2**30 / torch.cuda.get_device_properties(0).total_memory)
