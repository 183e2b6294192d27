"""Keeps `run.json`, while a run goes on: the listener behind `ft runs`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from fitune.errors import FtError, Interrupted, cause, one_line
from fitune.plugin.events import EvalReport, MemoryForecast, MemoryReport, Notice, Recovery, Run, StepReport
from fitune.plugin.hookspecs import hookimpl
from fitune.plugin.options import NoOptions
from fitune.plugin.recipe import Recipe
from fitune.plugin.records import Listener
from fitune.plugin.timings import Timings
from fitune.runs.json_lines import Complaints, finite
from fitune.runs.layout import MANIFEST, RECORD, read_json
from fitune.runs.lines import read_metrics, until
from fitune.runs.record import (
    EARLY,
    ForecastRecord,
    HeldOut,
    MemoryRecord,
    RunRecord,
    StartRecord,
    read_record,
    write_record,
)

EVERY = 10.0
"""Seconds between two writings, where steps alone are to be told."""


@hookimpl
def ft_listeners() -> Iterable[Listener[NoOptions]]:
    """Offer `record`."""
    yield Listener(
        name="record",
        summary="Keeps what becomes of the run, over all of its starts, in run.json, for ft runs",
        options=NoOptions,
        make=lambda options: RecordFile(),
        default=True,
    )


def _now() -> datetime:
    return datetime.now(timezone.utc)


class RecordFile:
    """Writes `run.json` at the start, at checkpoints and evaluations, at the end, and now and then between.

    A run that goes on adds to the record that is there. A file that cannot be written is told of, and ends no run.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, now: Callable[[], datetime] = _now) -> None:
        """`clock` gives seconds, `now` the time of the day."""
        self._clock, self._now = clock, now
        self._directory = Path()
        self._record: RunRecord | None = None
        self._start = self._written = 0.0
        self._before = 0.0
        self._timings: Timings | None = None
        self._best_by = ""
        self._complaints = Complaints()

    @hookimpl
    def ft_run_started(self, run: Run) -> None:
        """Begin the record, or go on with it."""
        self._timings, self._best_by = run.timings, run.recipe.evaluation.best_by
        self._directory, self._start = run.directory, self._clock()
        started = self._time()
        record = _begun(run, started)
        if run.resumed is not None:
            record = _gone_on(record, run, self._found())
        self._before, self._record = record.seconds, record
        self._write()

    @hookimpl
    def ft_recovered(self, recovery: Recovery) -> None:
        """What the run goes on with has a forecast of its own."""
        self._change(forecast=_forecast(recovery.forecast))
        self._write()

    @hookimpl
    def ft_step_done(self, step: StepReport) -> None:
        """Count a step."""
        if self._record is None:
            return
        self._change(
            steps_made=step.step,
            loss=finite(step.loss),
            tokens=self._record.tokens + step.tokens,
            memory=_most(self._record.memory, step.memory),
            attention=step.attention or self._record.attention,
            early=False,
        )
        self._note_phases()
        if self._clock() - self._written >= EVERY:
            self._write()

    @hookimpl
    def ft_evaluated(self, report: EvalReport) -> None:
        """Keep an evaluation."""
        if self._record is not None:
            found, best = HeldOut.of(report, self._best_by), self._record.best
            self._change(held_out=found, best=found if found.beats(best, self._best_by) else best)
            self._write()

    @hookimpl
    def ft_noticed(self, notice: Notice) -> None:
        """Note that it ends early."""
        if notice.kind == EARLY:
            self._change(early=True)

    @hookimpl
    def ft_saved(self, directory: Path) -> None:
        """Note of which step it is."""
        step = read_json(directory / MANIFEST).get("step")
        self._change(saved=step if isinstance(step, int) else None)

    @hookimpl
    def ft_checkpoint_saved(self) -> None:
        """Write down to where the run can go on."""
        self._write()

    @hookimpl
    def ft_run_finished(self, error: BaseException | None) -> None:
        """Say how it ended; nothing, if it ended before it was ready."""
        if self._record is None:
            return
        state: Literal["done", "stopped", "failed"] = "failed"
        if error is None:
            state = "done"
        elif isinstance(error, Interrupted | KeyboardInterrupt | SystemExit):
            state = "stopped"
        ended = self._time()
        *before, last = self._record.starts
        self._change(
            state=state,
            ended=ended,
            error=None if error is None else _said(error),
            starts=(*before, replace(last, ended=ended, how=state)),
        )
        self._write()

    def _note_phases(self) -> None:
        """Once, with the first step."""
        if self._timings is not None and self._record is not None and self._timings.phases:
            phases = {name: round(seconds, 3) for name, seconds in self._timings.phases.items()}
            *before, last = self._record.starts
            self._change(starts=(*before, replace(last, phases=phases)))
            self._timings = None

    def _change(self, **values: object) -> None:
        if self._record is not None:
            self._record = replace(self._record, **values)  # type: ignore[arg-type]

    def _write(self) -> None:
        if self._record is None:
            return
        self._written = self._clock()
        self._change(updated=self._time(), seconds=self._before + self._written - self._start)
        try:
            write_record(self._directory, self._record)
            self._complaints.mended("record", f"{self._directory / RECORD} is written again")
        except OSError as error:
            what = f"{self._directory / RECORD} cannot be written: {cause(error)}. Training goes on; ft runs shows"
            self._complaints.tell("record", f"{what} what was known before")

    def _found(self) -> RunRecord | None:
        """The record that is there, if it can be read."""
        try:
            return read_record(self._directory)
        except FtError as error:
            self._complaints.tell("found", f"{error.message}. A new one is begun")
            return None

    def _time(self) -> str:
        return self._now().astimezone(timezone.utc).isoformat(timespec="seconds")


def model_name(recipe: Recipe) -> str:
    """What the base model is called: its name on the hub, its package, or the last part of its path."""
    table = recipe.model.table()
    for key in ("id", "package", "path"):
        if isinstance(found := table.get(key), str) and found:
            return Path(found).name if key == "path" else found
    return recipe.model.record.name


def _begun(run: Run, started: str) -> RunRecord:
    return RunRecord(
        name=run.recipe.general.name,
        state="running",
        steps_made=run.resumed or 0,
        steps=run.steps,
        started=started,
        updated=started,
        starts=(StartRecord(started=started, from_step=run.resumed or 0),),
        forecast=_forecast(run.forecast),
        device=_device(run.device),
        model=model_name(run.recipe),
        adapter=run.recipe.adapter.record.name,
        trainable=run.trainable,
        parameters=run.parameters,
    )


def _gone_on(record: RunRecord, run: Run, before: RunRecord | None) -> RunRecord:
    """The record of a run that goes on: what was spent before counts, and what was made up to its checkpoint."""
    try:
        metrics = until(read_metrics(run.directory), run.resumed or 0, run.evaluated)
    except OSError:
        metrics = []
    for line in metrics:
        values = {key: value for key in ("loss", "exact_match") if isinstance(value := line.values.get(key), float)}
        if line.event == "step":
            record = replace(record, loss=values.get("loss"))
        elif line.event == "evaluation":
            by = run.recipe.evaluation.best_by
            measure = value if isinstance(value := line.values.get(by), float) else None
            found = HeldOut(step=line.step, measure=measure, **values)
            record = replace(record, held_out=found, best=found if found.beats(record.best, by) else record.best)
    if before is None:
        return record
    starts = before.starts
    if starts and starts[-1].how is None:  # its process was killed
        starts = (*starts[:-1], replace(starts[-1], ended=before.updated, how="interrupted"))
    return replace(
        record,
        started=before.started,
        seconds=before.seconds,
        early=before.early,
        tokens=before.tokens,
        memory=before.memory,
        attention=before.attention,
        starts=(*starts, *record.starts),
    )


def _most(before: MemoryRecord | None, now: MemoryReport) -> MemoryRecord:
    found = MemoryRecord(kind=now.kind, peak=now.peak, reserved=now.reserved)
    if before is None or before.kind != found.kind:
        return found
    reserved = [size for size in (before.reserved, found.reserved) if size is not None]
    return replace(found, peak=max(before.peak, found.peak), reserved=max(reserved) if reserved else None)


def _forecast(forecast: MemoryForecast | None) -> ForecastRecord | None:
    if forecast is None or forecast.error is not None:
        return None
    return ForecastRecord(card=forecast.card, allocated=forecast.allocated, reserved=forecast.reserved)


def _device(device: str) -> str:
    """The name of the card, where it is one."""
    if not device.startswith("cuda"):
        return device
    import torch

    return str(torch.cuda.get_device_name(device))


def _said(error: BaseException) -> str:
    return one_line(error.message) if isinstance(error, FtError) else cause(error)
