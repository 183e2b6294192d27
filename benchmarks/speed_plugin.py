"""The plugin of `benchmarks/speed.py` in an `ft run`: it limits the allocator, and tells the clock of each step.

It is found as any installed plugin is. What it is to do stands in the environment: `SPEED_OUT`, `SPEED_TIMED`, and
`SPEED_GIB` where there is a limit.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from speed_clock import Clock, limit

from fitune import Run, StepReport, hookimpl

_clock = Clock(Path(os.environ["SPEED_OUT"]), int(os.environ["SPEED_TIMED"]))
_gib = os.environ.pop("SPEED_GIB", None)  # which processes that the run starts are not to see: they use no GPU
if _gib is not None:
    limit(float(_gib))


@hookimpl
def ft_run_started(run: Run) -> None:
    """Keep the forecast and what was chosen."""
    strategies = [f"{use.table()}" for use in run.recipe.strategies]
    forecast = None if run.forecast is None else dataclasses.asdict(run.forecast)
    _clock.tell(strategies=strategies, fitted=list(run.fitted), told=list(run.told), forecast=forecast)


@hookimpl
def ft_step_done(step: StepReport) -> None:
    """Take the time."""
    _clock.step_done(step.tokens, step.loss)
