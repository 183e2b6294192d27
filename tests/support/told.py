"""Events of a run that never was, for the tests of what listens to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fitune.plugin.events import (
    Answer,
    CheckpointReport,
    EvalReport,
    MemoryForecast,
    MemoryReport,
    Notice,
    Run,
    StepReport,
)
from fitune.plugin.strategy import Plan
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry
from support.light import write_light


def made_run(place: Path, *overrides: str, **changes: Any) -> Run:
    """A run of ten steps in `place/run`, of the recipe that is there, or of the light one."""
    recipe = place / "recipe" / "r.toml"
    if not recipe.exists():
        write_light(recipe.parent)
    directory = place / "run"
    directory.mkdir(exist_ok=True)
    absent: Any = None
    values: dict[str, Any] = {
        "recipe": read_recipe(recipe, open_registry(), overrides),
        "directory": directory,
        "plan": Plan(gpu=False),
        "model": absent,
        "tokenizer": absent,
        "device": "cpu",
        "processes": 1,
        "steps": 10,
        "rows": 40,
        "counts": (),
        "trainable": 8,
        "parameters": 100,
        **changes,
    }
    return Run(**values)


def step(number: int, loss: float = 2.0, **changes: Any) -> StepReport:
    """A step of 20 tokens in half a second."""
    values: dict[str, Any] = {
        "step": number,
        "epoch": number / 10,
        "loss": loss,
        "learning_rate": 1e-3,
        "grad_norm": 1.0,
        "tokens": 20,
        "targets": 10,
        "seconds": 0.5,
        "memory": MemoryReport(kind="gpu", peak=1000 + number, reserved=2000 + number),
        **changes,
    }
    return StepReport(**values)


def evaluation(number: int, loss: float | None, *generated: str) -> EvalReport:
    """An evaluation whose right answers are all "yes"."""
    answers = tuple(Answer(prompt=f"{n}?", expected="yes", generated=text) for n, text in enumerate(generated))
    return EvalReport(step=number, loss=loss, rows=2, targets=6, seconds=0.1, answers=answers)


def checkpoint(run: Run, number: int) -> CheckpointReport:
    """A checkpoint of 3 MiB."""
    place = run.directory / "checkpoints" / f"step-{number}"
    return CheckpointReport(step=number, directory=place, bytes=3 << 20, seconds=0.25, why="steps", best=True)


def notice(number: int) -> Notice:
    """A notice of a loss spike."""
    return Notice(step=number, kind="loss spike", what="the loss is 9, after 2 before")


def forecast() -> MemoryForecast:
    """A forecast for a card, in bytes."""
    return MemoryForecast(card="A10G", allocated=3000, reserved=4000, fits=True)
