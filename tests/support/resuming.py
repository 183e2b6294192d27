"""Runs that are stopped and go on, and what two such runs must have equal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fitune import Notice, Run, StepReport, hookimpl
from fitune.errors import Interrupted
from fitune.testing import open_registry, write_recipe, write_tiny_data
from fitune.train.run import run
from fitune.train.start import Start, start_of
from support.tiny import metrics

STEPS = 8
"""More than an epoch of six."""


def write_resumed(directory: Path) -> Path:
    """Write the tiny recipe with all that draws random numbers, in deterministic mode."""
    path = write_recipe(
        directory,
        {
            "deterministic": True,
            "adapter": {"use": "lora", "dropout": 0.3},
            "memory": {"strategy": [{"use": "accumulation", "steps": 2}]},
            "eval": {"every": 3, "source": [{"use": "jsonl", "path": "held_out.jsonl"}]},
            "train": {"steps": STEPS, "warmup_steps": 2, "micro_batch": 1},
        },
    )
    write_tiny_data(path.parent / "held_out.jsonl", rows=3)
    return path


class Stopper:
    """A plugin: asks the run to stop after a step, or fails there; keeps what it is told."""

    def __init__(self, after: int | None = None, error: Exception | None = None) -> None:
        self.after, self.error = after, error
        self.steps: list[StepReport] = []
        self.notices: list[Notice] = []

    @hookimpl
    def ft_step_done(self, run: Run, step: StepReport) -> None:
        """Stop, if it is time."""
        self.steps.append(step)
        if step.step == self.after:
            if self.error is not None:
                raise self.error
            run.stop.ask("the test")

    @hookimpl
    def ft_noticed(self, notice: Notice) -> None:
        """Keep it."""
        self.notices.append(notice)


def go(given: Path, *overrides: str, plugins: Sequence[object] = (), **asked: Any) -> Start:
    """As `ft run`: a recipe begins, a directory goes on."""
    registry = open_registry(*plugins)
    values: dict[str, Any] = {"out": None, "resume": False, "allowed": (), **asked}
    start = start_of(given, registry, overrides, **values)
    if not start.done:
        start.directory.mkdir(parents=True, exist_ok=True)
        run(start.recipe, registry, start.directory, resume=start.resume)
    return start


def stop(recipe: Path, directory: Path, after: int, *overrides: str) -> Interrupted:
    """A run that is stopped after so many steps."""
    with pytest.raises(Interrupted) as raised:
        go(recipe, *overrides, plugins=[Stopper(after)], out=directory)
    return raised.value


def curve(directory: Path) -> list[dict[str, Any]]:
    """The steps and evaluations of a run, without times and memory."""
    timed = ("seconds", "tokens_per_second", "host_memory_peak")
    lines = [*metrics(directory), *metrics(directory, "evaluation")]
    return [{key: value for key, value in line.items() if key not in timed} for line in lines]


def weights(directory: Path) -> list[torch.Tensor]:
    """What a run has trained."""
    (file,) = (f for name in ("adapter", "model") for f in (directory / name).glob("*.safetensors"))
    return list(load_file(file).values())
