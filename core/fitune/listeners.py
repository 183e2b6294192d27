"""What fitune itself keeps of a run's events: metrics as JSON lines, examples, and memory, forecast and measured.

A file that cannot be written is told of, and ends no run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from fitune.answers_file import Answered, first_answers, write_answers
from fitune.complaints import Complaints, cause
from fitune.durable import write_file
from fitune.errors import RunError
from fitune.events import (
    CheckpointReport,
    EvalReport,
    MemoryForecast,
    Notice,
    Recovery,
    RehearsalReport,
    Run,
    StepReport,
)
from fitune.hookspecs import hookimpl
from fitune.line_file import LineFile
from fitune.metrics_lines import NAME, read_metrics, until
from fitune.secrets import redacted_values


class MetricsFile:
    """Writes `metrics.jsonl`: a line a step and a line an evaluation, each flushed, so that a killed run keeps them.

    A rehearsal, a checkpoint and a notice have their lines, and a run that goes on after it ran out of memory. A run
    that goes on from a checkpoint keeps the lines up to there, so that a step has one line however often the run was
    killed.

    `examples.json` holds the answers of the last evaluation that generated any, and of the first.
    """

    def __init__(self) -> None:
        self._file: LineFile | None = None
        self._first: Answered | None = None
        self._complaints = Complaints()

    @hookimpl
    def ft_run_started(self, run: Run) -> None:
        """Open the file. Raises `RunError` if there is one to go on with, and it cannot be read."""
        file = run.directory / NAME
        if run.resumed is None:
            self._file = LineFile(file)
            return
        try:
            metrics = read_metrics(run.directory)
        except OSError as error:  # it would be lost
            raise RunError(f"{file} cannot be read: {cause(error)}. Mend that, or move it away") from error
        self._file = LineFile(file, [line.text for line in until(metrics, run.resumed, run.evaluated)])
        self._first = first_answers(run.directory, run.evaluated)
        self._write({"event": "resume", "step": run.resumed})

    @hookimpl
    def ft_rehearsed(self, report: RehearsalReport) -> None:
        """Write a rehearsal."""
        self._write({"event": "rehearsal", **rehearsal_values(report)})

    @hookimpl
    def ft_recovered(self, recovery: Recovery) -> None:
        """Write what the run goes on with."""
        self._write({"event": "recovery", **dataclasses.asdict(recovery)})

    @hookimpl
    def ft_step_done(self, run: Run, step: StepReport) -> None:
        """Write a step."""
        if is_logged(run, step):
            self._write({"event": "step", **step_values(step)})

    @hookimpl
    def ft_evaluated(self, run: Run, report: EvalReport) -> None:
        """Write an evaluation."""
        self._write({"event": "evaluation", "step": report.step, **eval_values(report)})
        if not report.answers:
            return
        last = Answered(step=report.step, answers=report.answers)
        try:
            write_answers(run.directory, last, self._first)
            self._complaints.mended("answers", "the held-out answers are written again")
        except OSError as error:
            what = f"the held-out answers of step {report.step} cannot be written: {cause(error)}. Training goes on"
            self._complaints.tell("answers", what)
        self._first = self._first or last

    @hookimpl
    def ft_checkpoint_saved(self, report: CheckpointReport) -> None:
        """Write a checkpoint; what it holds of the run, the file then holds on the disk, too."""
        values = {"step": report.step, "directory": report.directory.name, "why": report.why, "best": report.best}
        self._write({"event": "checkpoint", **values, "bytes": report.bytes, "seconds": report.seconds})
        assert self._file is not None
        self._file.keep()

    @hookimpl
    def ft_noticed(self, notice: Notice) -> None:
        """Write a notice."""
        self._write({"event": "notice", **redacted_values(dataclasses.asdict(notice))})

    @hookimpl
    def ft_run_finished(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _write(self, values: Mapping[str, Any]) -> None:
        assert self._file is not None
        self._file.append(values)


class MemoryFile:
    """Keeps a GPU run's forecast beside what was measured, in `memory.json`, and what that shows of the card."""

    def __init__(self) -> None:
        self._complaints = Complaints()

    @hookimpl
    def ft_run_finished(self, run: Run | None, error: BaseException | None) -> None:
        """Measure, and write both."""
        if run is None or run.forecast is None or error is not None:
            return
        from fitune.forecast.seen import note
        from fitune.measure import measure_context, measure_memory

        memory = measure_memory(run.device)
        if memory.kind != "gpu":  # the recipe is made to fit a card that is not here
            return
        context = measure_context(run.device)
        measured = {"allocated": memory.peak, "reserved": memory.reserved, "context": context}
        kept = {"forecast": dataclasses.asdict(run.forecast), "measured": measured}
        try:
            write_file(run.directory / "memory.json", json.dumps(kept, indent=2) + "\n")
        except OSError as failure:
            what = f"what was measured of the run's memory cannot be written: {cause(failure)}"
            self._complaints.tell("memory", f"{what}. It is done, and nothing else is missing")
        if run.forecast.error is None and memory.reserved and _is_of_this_card(run.forecast):
            with contextlib.suppress(OSError):  # it is for the next forecast, and the run is done
                note(run.forecast.card, context=context, reserved=memory.reserved, forecast=run.forecast.reserved)


def _is_of_this_card(forecast: MemoryForecast) -> bool:
    """Whether a forecast is for the card that it is measured on, rather than one that a recipe names."""
    from fitune.forecast.cards import local_card

    card = local_card()
    return card is not None and card.name == forecast.card


def is_logged(run: Run, step: StepReport) -> bool:
    """Whether the numbers of a step are kept (`[log] every`); those of the last are."""
    return step.step % run.recipe.log.every == 0 or step.step == run.steps


def step_values(step: StepReport) -> dict[str, int | float]:
    """A step's numbers under the names that files and trackers use; memory in bytes, all measured."""
    values: dict[str, int | float] = {
        "step": step.step,
        "epoch": round(step.epoch, 4),
        "loss": step.loss,
        "learning_rate": step.learning_rate,
        "grad_norm": step.grad_norm,
        "tokens": step.tokens,
        "target_tokens": step.targets,
        "tokens_per_second": step.tokens / step.seconds,
        "seconds": step.seconds,
        f"{step.memory.kind}_memory_peak": step.memory.peak,
    }
    if step.loss_scale is not None:
        values |= {"loss_scale": step.loss_scale, "skipped": step.skipped}
    if step.skipped:
        del values["grad_norm"]  # JSON knows no infinity
    if step.memory.reserved is not None:
        values[f"{step.memory.kind}_memory_reserved_peak"] = step.memory.reserved
    return values


def rehearsal_values(report: RehearsalReport) -> dict[str, int | float]:
    """A rehearsal's numbers; memory in bytes, measured."""
    memory = report.memory
    reserved = {} if memory.reserved is None else {f"{memory.kind}_memory_reserved_peak": memory.reserved}
    return {
        "rows": report.rows,
        "tokens": report.tokens,
        "seconds": report.seconds,
        f"{memory.kind}_memory_peak": memory.peak,
        **reserved,
    }


def eval_values(report: EvalReport) -> dict[str, int | float]:
    """An evaluation's numbers."""
    values: dict[str, int | float] = {
        "rows": report.rows,
        "target_tokens": report.targets,
        "seconds": report.seconds,
    }
    if report.loss is not None:
        values["loss"] = report.loss
    if report.exact_match is not None:
        values["exact_match"] = report.exact_match
    return values
