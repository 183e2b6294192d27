"""When a run writes a checkpoint, and which of them it keeps."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fitune.checkpoint.files import Progress, place_of, places, write
from fitune.checkpoint.manifest import damage
from fitune.checkpoint.module_state import ModuleState
from fitune.checkpoint.state import TrainingState, capture
from fitune.compose.parts import Parts
from fitune.errors import Interrupted, sentences
from fitune.plugin.events import CheckpointReport, EvalReport, Notice, Run
from fitune.plugin.recipe import Evaluation
from fitune.runs.atomic import discard
from fitune.runs.record import HeldOut
from fitune.train.guards import Watcher
from fitune.train.position import Position


class Keeper:
    """Keeps the checkpoints of one run; every process has its own, and they decide alike."""

    def __init__(
        self,
        progress: Progress | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        listeners: Callable[[Run, int], Mapping[str, Any]] = lambda run, step: {},
    ) -> None:
        """`progress` is that of the checkpoint that the run goes on from; `listeners` gives the state of the run's
        listeners after so many steps.
        """
        self.progress = progress or Progress()
        """Of the newest checkpoint, but for the best evaluation, which may be newer."""
        self.saved: int | None = None if progress is None else progress.step
        """Steps of the newest checkpoint that is known to be whole."""
        self.watcher = Watcher(self.progress.guards)
        self._loaded: ModuleState | None = None
        self._clock, self._listeners = clock, listeners
        self._start = self._since = clock()
        self._before = self.progress.seconds
        self._failed: int | None = None

    def place(self, run: Path) -> Path | None:
        """The newest checkpoint that is known to be whole."""
        return None if self.saved is None else place_of(run, self.saved)

    def begin(self, parts: Parts, loaded: ModuleState) -> None:
        """Training begins, or goes on: `loaded` is what the model's modules were before it."""
        self._loaded = loaded
        self._since = self._clock()
        if self.saved is not None and parts.accelerator.is_main_process:
            self._thin_out(parts)  # a process that was killed may not have come to it

    def observe(self, report: EvalReport, settings: Evaluation) -> None:
        """Remember the best evaluation, and how many there were in a row that were not better by enough."""
        found = HeldOut.of(report, settings.best_by)
        value, sign = found.judged(settings.best_by)
        self.progress = _patient(self.progress, report.step, value, sign, settings.min_delta)
        best = self.progress.best
        if report.step and value is not None and (best is None or sign * (value - best) > 0):
            self.progress = replace(self.progress, best=value, best_step=report.step)

    def gave_up(self, parts: Parts) -> bool:
        """Whether there were as many evaluations in a row without a better one as the recipe has patience for."""
        patience = parts.run.recipe.evaluation.patience
        return patience is not None and self.progress.waited >= patience

    def result(self, parts: Parts, at: Position) -> tuple[Path | None, Notice | None]:
        """The checkpoint that holds what the run ends with, where that is not what was trained last; and what is to be
        told of it.
        """
        best = self.progress.best_step
        if parts.run.recipe.train.result == "last" or best is None or best == at.step:
            return None, None
        place = place_of(parts.run.directory, best)
        if (wrong := damage(place)) is not None:
            what = (
                f"the checkpoint of the best evaluation, {place}, cannot be used: {wrong}. What is saved is that of the"
            )
            return None, Notice(step=at.step, kind="not the best", what=f"{what} last step, {at.step}")
        what = f"what is saved is that of step {best}, of the best evaluation, and not of the last step, {at.step}"
        return place, Notice(step=at.step, kind="best", what=what)

    def late(self, parts: Parts) -> bool:
        """Whether so many minutes have passed that it is time for a checkpoint."""
        minutes = parts.run.recipe.checkpoint.minutes
        return minutes > 0 and self._clock() - self._since >= 60 * minutes

    def due(self, parts: Parts, at: Position, *, stop: bool, late: bool) -> str | None:
        """Why a checkpoint is to be written now (`CheckpointReport.why`), if one is."""
        settings, step = parts.run.recipe.checkpoint, at.step
        if step == 0 or step == self.saved or (step == self._failed and not stop):
            return None
        if stop:
            return "stop"
        if (step == parts.run.steps or self.gave_up(parts)) and settings.at_end:
            return "end"
        if settings.steps is not None and step % settings.steps == 0:
            return "steps"
        if settings.best and step == self.progress.best_step and at.evaluated == step:
            return "best"
        return "minutes" if late else None

    def keep(
        self, parts: Parts, at: Position, why: str, state: TrainingState | None = None
    ) -> CheckpointReport | Notice:
        """Write a checkpoint, and delete those that it replaces; in every process. Where that fails, all that was there
        stays, and the next one is tried at its time.

        `state` is that of the run, where it was captured before.
        """
        start = time.perf_counter()
        assert self._loaded is not None
        progress = replace(
            self.progress,
            step=at.step,
            evaluated=at.evaluated,
            seconds=self._before + self._clock() - self._start,
            guards=self.watcher.state(),
        )
        listeners = self._listeners(parts.run, at.step)
        size = write(parts, state or capture(parts, at.step, self._loaded), progress, listeners)
        self._since = self._clock()
        place = place_of(parts.run.directory, at.step)
        if isinstance(size, str):
            self._failed = at.step
            has = f"The newest is that of step {self.saved}" if self.saved else "There is none yet"
            what = f"{place} could not be written: {size}. {has}. Make room, and the next one will be"
            return Notice(step=at.step, kind="not saved", what=what)
        self.progress, self.saved, self._failed = progress, at.step, None
        return CheckpointReport(
            step=at.step,
            directory=place,
            bytes=size,
            seconds=time.perf_counter() - start,
            why=why,
            best=progress.best_step == at.step,
            removed=self._thin_out(parts) if parts.accelerator.is_main_process else (),
        )

    def interrupted(self, parts: Parts, at: Position) -> Interrupted:
        """What ends a run that was asked to stop."""
        run = parts.run
        kept = f"Saved in {place_of(run.directory, at.step)}" if self.saved == at.step else "Nothing was trained yet"
        if self.saved != at.step and at.step:
            of_old = f", that of step {self.saved} is there" if self.saved else ""
            kept = f"No checkpoint of this step could be written{of_old}"
        again = f"Go on with: ft run {run.directory}"
        return Interrupted(sentences(f"stopped after {at.step} of {run.steps} steps: {run.stop.reason}", kept, again))

    def _thin_out(self, parts: Parts) -> tuple[Path, ...]:
        """Delete all but the newest, and the best."""
        settings = parts.run.recipe.checkpoint
        best = self.progress.best_step if settings.best else None
        of_past = [(step, place) for step, place in places(parts.run.directory) if step <= self.progress.step]
        removed = []
        for step, place in of_past[settings.keep :]:
            if step != best:
                with contextlib.suppress(OSError):  # it is in nobody's way
                    discard(place)
                    removed.append(place)
        return tuple(removed)


def _patient(progress: Progress, step: int, value: float | None, sign: int, min_delta: float) -> Progress:
    """With an evaluation counted; one before training, and one without a measure that is a number, better none."""
    if step == 0:
        return progress
    before = progress.reference
    if value is not None and (before is None or sign * (value - before) > min_delta):
        return replace(progress, reference=value, waited=0)
    return replace(progress, waited=progress.waited + 1)
