"""Watches the loop for what a person should know: steps that are no use, losses that leap, parameters that stay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fitune.compose import Parts
from fitune.dataflow import Example
from fitune.errors import RunError
from fitune.events import Notice, StepReport
from fitune.guards import SpikeGuard, SpikeState, non_finite_text, zero_gradients
from fitune.judging import Judge
from fitune.kept_rows import keep_rows
from fitune.loss_scaling import MOST_SKIPPED


class Watcher:
    """What has been seen of one run; it holds no part of it. Every process has its own, and they see alike."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        """`state` is what another one had seen."""
        known = state or {}
        self._skipped = int(known.get("skipped", 0))
        self._spikes = SpikeGuard(SpikeState(**known["spikes"]) if "spikes" in known else None)

    def state(self) -> dict[str, Any]:
        """What it has seen, as plain values."""
        return {"skipped": self._skipped, "spikes": asdict(self._spikes.state())}

    def saw(self, parts: Parts, report: StepReport, judge: Judge, rows: Sequence[Example]) -> Iterator[Notice]:
        """Look at a step and its rows; gives what should be known of it. Raises `RunError` where it ends the run."""
        if judge.finite:
            if judge.made:
                self._skipped = 0
            for kind, what in (
                ("no gradient", zero_gradients(_named(parts, judge)) if judge.norms else None),
                ("loss spike", self._spikes.saw(report.loss)),
            ):
                if what is not None:
                    yield Notice(step=report.step, kind=kind, what=what)
            return
        kept = _kept(parts, report, rows)
        what = non_finite_text(report.step, report.loss, report.grad_norm, kept)
        fix = "Try a lower [train] learning_rate, or warmup_steps"
        if parts.step.scaling is not None:  # whatever the scale is, the forward pass is the same
            fix = 'In float16 the model itself may overflow: set its dtype to "bfloat16" or "float32"'
        self._skipped += 1
        if parts.run.recipe.train.non_finite == "stop":
            raise RunError(f"{what}. No weight was changed by it. {fix}")
        if self._skipped >= MOST_SKIPPED:
            raise RunError(f"{what}. So were the {self._skipped - 1} steps before, none of which was made. {fix}")
        yield Notice(step=report.step, kind="skipped", what=f"{what}. It was left out")


def _named(parts: Parts, judge: Judge) -> dict[str, float]:
    """The norms of the gradients, by the parameters' names."""
    names = (name for name, parameter in parts.run.model.named_parameters() if parameter.requires_grad)
    return dict(zip(names, judge.norms, strict=True))


def _kept(parts: Parts, report: StepReport, rows: Sequence[Example]) -> Path | None:
    if not parts.accelerator.is_main_process:
        return None
    return keep_rows(
        parts.run.directory, report.step, rows, parts.run.tokenizer, report.loss, report.grad_norm
    )  # fmt: skip
