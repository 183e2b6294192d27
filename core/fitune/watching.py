"""Watches the loop for what a person should know: steps that are no use, and what to do about them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fitune.compose import Parts
from fitune.dataflow import Example
from fitune.errors import RunError
from fitune.events import Notice, StepReport
from fitune.judging import Judge
from fitune.loss_scaling import MOST_SKIPPED


class Watcher:
    """What has been seen of one run; it holds no part of it."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        """`state` is what another one had seen."""
        self._skipped = int((state or {}).get("skipped", 0))

    def state(self) -> dict[str, Any]:
        """What it has seen, as plain values."""
        return {"skipped": self._skipped}

    def saw(self, parts: Parts, report: StepReport, judge: Judge) -> Iterator[Notice]:
        """Look at a step; gives what should be known of it."""
        if judge.made:
            self._skipped = 0
        if not judge.finite:
            what = f"the loss is {report.loss:g} and its gradient's norm {report.grad_norm:g}: the step was left out"
            yield Notice(step=report.step, kind="skipped", what=what)

    def must_go_on(self, parts: Parts, step: int, rows: Sequence[Example], loss: float, norm: float) -> None:
        """Raise `RunError` where a step whose loss or gradient is no finite number ends the run."""
        fix = "Try a lower [train] learning_rate, or warmup_steps"
        if parts.step.scaling is not None:  # whatever the scale is, the forward pass is the same
            fix = 'In float16 the model itself may overflow: set its dtype to "bfloat16" or "float32"'
        what = f"step {step}: the loss is {loss:g} and its gradient's norm {norm:g}, so training cannot go on"
        if parts.run.recipe.train.non_finite == "stop":
            raise RunError(f"{what}. No weight was changed by it. {fix}")
        self._skipped += 1
        if self._skipped >= MOST_SKIPPED:
            raise RunError(f"{what}, nor could it in the {self._skipped - 1} steps before. {fix}")
