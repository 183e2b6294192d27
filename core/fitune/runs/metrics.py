"""A run's `metrics.jsonl`: the listener that writes it."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge

from fitune.errors import RunError, cause
from fitune.plugin.events import CheckpointReport, EvalReport, Notice, Recovery, RehearsalReport, Run, StepReport
from fitune.plugin.hookspecs import hookimpl
from fitune.plugin.records import Listener
from fitune.recipe.secrets import redacted_values
from fitune.runs.answers import Answered, first_answers, write_answers
from fitune.runs.gaps import KEPT, Filled, fill, known_lines, spacing_of
from fitune.runs.json_lines import Complaints, LineFile, json_line
from fitune.runs.layout import METRICS
from fitune.runs.lines import Line, Metrics, line_of, read_metrics, until


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsOptions:
    """Options of `metrics`."""

    every: Annotated[int, Ge(1)] = 1
    """Steps between the lines of two steps. The last step's is always written, as are all evaluations."""


@hookimpl
def ft_listeners() -> Iterable[Listener[MetricsOptions]]:
    """Offer `metrics`."""
    yield Listener(
        name="metrics",
        summary="Writes each step and evaluation to metrics.jsonl, held-out answers to examples.json",
        options=MetricsOptions,
        make=lambda options: MetricsFile(options.every),
        default=True,
    )


class MetricsFile:
    """Writes `metrics.jsonl`: a line a step and a line an evaluation, each flushed, so that a killed run keeps them.

    A rehearsal, a checkpoint and a notice have their lines, and a run that goes on after it ran out of memory. A run
    that goes on from a checkpoint keeps the lines up to there, so that a step has one line however often the run was
    killed. The newest of them are in the checkpoint too: those that are damaged or missing in the file are put back,
    and told of.

    `examples.json` holds the answers of the last evaluation that generated any, and of the first.
    """

    def __init__(self, every: int = 1) -> None:
        """`every` is the number of steps between the lines of two steps."""
        self._every = every
        self._file: LineFile | None = None
        self._first: Answered | None = None
        self._complaints = Complaints()
        self._newest = {event: deque[str](maxlen=KEPT) for event in ("step", "evaluation")}
        self._known: list[Line] = []
        self._before = every

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the newest lines, and how many steps are between two."""
        return {"every": self._every, "lines": [text for texts in self._newest.values() for text in texts]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what a checkpoint has kept."""
        before = state.get("every")
        self._before = before if isinstance(before, int) and before > 0 else self._every
        self._known = known_lines(state.get("lines"))

    @hookimpl
    def ft_run_started(self, run: Run) -> None:
        """Open the file. Raises `RunError` if there is one to go on with, and it cannot be read."""
        file = run.directory / METRICS
        if run.resumed is None:
            self._file = LineFile(file)
            return
        try:
            metrics = read_metrics(run.directory)
        except OSError as error:  # it would be lost
            raise RunError(f"{file} cannot be read: {cause(error)}. Mend that, or move it away") from error
        found = self._filled(metrics, run.resumed, run.evaluated)
        self._file = LineFile(file, [line.text for line in found.lines])
        for line in found.lines:
            self._remember(line)
        self._first = first_answers(run.directory, run.evaluated)
        before = {} if self._before == self._every else {"before": self._before}
        self._write({"event": "resume", "step": run.resumed, "every": self._every, **before})
        if found.wrong:
            what = f"{file}: {', '.join(found.wrong)}. {found.outcome}"
            self._complaints.tell("lines", what)
            if found.filled or found.missing:
                self._write({"event": "notice", "step": run.resumed, "kind": "damaged metrics", "what": what})

    def _filled(self, metrics: Metrics, made: int, evaluated: int) -> Filled:
        """The lines to go on with, up to so many steps."""
        of = {"step": made, "evaluation": evaluated}
        known = [line for line in self._known if line.step <= of[line.event]]
        spacing = spacing_of(metrics, self._before)
        return fill(metrics, until(metrics, made, evaluated), known, made, spacing or {0: made + 1})

    def _remember(self, line: Line | None) -> None:
        if line is not None and line.event in self._newest:
            self._newest[line.event].append(line.text)

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
        if is_logged(run, step, self._every):
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
        if values["event"] in self._newest:
            self._remember(line_of(json_line(values).rstrip("\n")))


def is_logged(run: Run, step: StepReport, every: int) -> bool:
    """Whether the numbers of a step are kept, where those of each so many steps are; those of the last are."""
    return step.step % every == 0 or step.step == run.steps


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
    values |= step.metrics
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
    values |= report.metrics
    if report.exact_match is not None:
        values["exact_match"] = report.exact_match
    if report.answers_cut:
        values["answers_cut"] = report.answers_cut
        if report.exact_match_of_whole is not None:
            values["exact_match_of_whole"] = report.exact_match_of_whole
    return values
