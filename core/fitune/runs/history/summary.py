"""What became of a run, as far as its directory tells: from its record, or for an older run from its other files."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from fitune.errors import RunError, described
from fitune.plugin.launching import ENDED, JobState
from fitune.runs import gaps
from fitune.runs.launched import LAUNCH, Launched, read_launched
from fitune.runs.layout import ENVIRONMENT, IDENTITY, MEMORY, METRICS, RECIPE, RECORD, read_json, read_toml
from fitune.runs.lines import Metrics, read_metrics
from fitune.runs.lock import HOLDER, is_locked
from fitune.runs.record import HeldOut, MemoryRecord, RunRecord, read_record

State = Literal["starting", "running", "interrupted", "stopped", "failed", "done", "unknown"]
"""As it is shown: "interrupted" was killed, "starting" has its directory but trains not yet, "unknown" left no record.
"""

SIGNS = (RECORD, METRICS, IDENTITY, RECIPE, HOLDER, LAUNCH)
"""Files, any of which makes a directory a run's: but for a recipe alone, which may lie anywhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A run in a list; None for what is not known."""

    directory: Path
    name: str
    state: State
    steps_made: int | None = None
    steps: int | None = None
    loss: float | None = None
    """Of the last step."""
    held_out: HeldOut | None = None
    """The last evaluation."""
    memory: MemoryRecord | None = None
    """Measured."""
    forecast: int | None = None
    """Bytes that it was forecast to have allocated at most."""
    seconds: float | None = None
    started: str | None = None
    updated: str | None = None
    """When it was last heard of."""
    holder: str | None = None
    """Who writes it now."""
    error: str | None = None
    launched: str | None = None
    """The launcher, and the kind of machine, that it was sent to; None for a run of this machine."""
    notes: tuple[str, ...] = ()
    """What of its files cannot be read."""


def find_runs(directory: Path) -> list[Summary]:
    """The runs in a directory, those last heard of first; a run's own directory gives that run.

    Raises `RunError` if there is no such directory. What is damaged ends nothing: it is noted with its run.
    """
    try:
        places = [place for place in directory.iterdir() if is_run(place)]
    except FileNotFoundError:
        raise RunError(f"{directory}: no such directory. Give the one that holds the runs: ft runs DIR") from None
    except OSError as error:
        raise RunError(f"{directory} cannot be read: {error.strerror}. Give the one that holds the runs") from error
    found = [summarise(place) for place in ([directory] if is_run(directory) else places)]
    return sorted(found, key=lambda run: (run.updated or "", run.directory.name), reverse=True)


def is_run(directory: Path) -> bool:
    """Whether a directory holds a run."""
    try:
        names = {place.name for place in directory.iterdir()}
    except OSError:
        return False
    found = names & set(SIGNS)
    return bool(found) and (found != {RECIPE} or ENVIRONMENT in names)


def summarise(directory: Path) -> Summary:
    """What a run's directory tells. What cannot be read is noted, and so is what nobody has thought of: one run that is
    damaged hides no other.
    """
    try:
        return _summary(directory)
    except Exception as error:
        note = f"{directory}: what it holds cannot be told: {described(error)}"
        return Summary(directory=directory, name=directory.name, state="unknown", notes=(note,))


def _summary(directory: Path) -> Summary:
    holder = is_locked(directory)
    record: RunRecord | None = None
    notes: list[str] = []
    try:
        record = read_record(directory)
    except RunError as error:
        notes.append(error.message)
    found = _of_files(directory) if record is None else _of_record(directory, record, holder is not None)
    if holder is not None:
        state: State = "running" if record is not None and record.state == "running" else "starting"
        found = replace(found, state=state, holder=str(holder))
    try:
        sent = read_launched(directory)
    except RunError as error:
        notes.append(error.message)
        sent = None
    if sent is not None and holder is None:
        found = _of_launched(found, sent, fetched=record is not None)
    return replace(found, notes=(*notes, *found.notes))


JOBS: dict[JobState, State] = {
    "absent": "unknown",
    "waiting": "starting",
    "running": "running",
    "stopping": "running",
    "stopped": "stopped",
    "failed": "failed",
    "done": "done",
}
"""The state of a run that was sent and did not come back yet, by that of its job."""


def _of_launched(found: Summary, sent: Launched, *, fetched: bool) -> Summary:
    """With what was heard of the job, where that is all that is known, or is news."""
    found = replace(found, launched=f"{sent.launcher}, {sent.machine.name}")
    state = sent.status.state
    if fetched and state in ENDED:
        return found
    error = sent.status.what if state == "failed" and not fetched else found.error
    name, heard = (found.name, found.updated) if fetched else (sent.name, sent.heard or sent.launched)
    return replace(
        found, state=JOBS[state], name=name, updated=heard, started=found.started or sent.launched, error=error
    )


TRAINED = ("adapter", "model")
"""Directories, in a run's, of what it trained, saved last of all."""

MOST = 2**63
"""Above what anything is that was counted."""


def must_be_run(directory: Path) -> None:
    """Raise `RunError` if a directory holds no run."""
    if not directory.is_dir():
        raise RunError(f"{directory}: no such directory. Name the directory of a run; ft runs lists them")
    if not is_run(directory):
        raise RunError(f"{directory} holds no run: there is no {RECORD} or {METRICS} in it. ft runs lists them")


def metrics_of(directory: Path, record: RunRecord | None = None) -> tuple[Metrics, tuple[str, ...]]:
    """A run's metrics, and what is wrong with them; its record tells how many steps there should be."""
    try:
        metrics = read_metrics(directory)
    except OSError as error:
        return Metrics(), (f"{directory / METRICS} cannot be read: {error.strerror}",)
    ended = record is not None and record.state != "running"
    return metrics, gaps.notes(
        directory,
        metrics,
        record.steps_made if record is not None and ended else None,
        held=metrics.torn and is_locked(directory) is not None,
    )


def number(value: object) -> float | None:
    """A number as it was read; None for anything else, and for one that is not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) >= 1e39:  # also of one that is none
        return None
    return float(value)


def counted(value: object) -> int | None:
    """A whole number that was counted, as it was read; None for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST else None


def held_out_of(line: Mapping[str, Any]) -> HeldOut:
    """An evaluation's figures, of its line of the metrics."""
    step = line.get("step")
    return HeldOut(
        step=counted(step) or 0,
        loss=number(line.get("loss")),
        exact_match=number(line.get("exact_match")),
    )


def _of_record(directory: Path, record: RunRecord, held: bool) -> Summary:
    state: State = record.state
    saved = any(next((directory / kind).glob("*.safetensors"), None) for kind in TRAINED)
    bare = [directory / kind for kind in TRAINED if (directory / kind).is_dir()] if not saved else []
    notes: tuple[str, ...] = ()
    if state == "running" and not held:  # killed; or done, and killed before it could say so
        state = "done" if saved and (record.early or record.steps_made == record.steps) else "interrupted"
    elif state == "done" and bare:
        state = "interrupted"
        notes = (f"{bare[0]} holds no weights: ft run {directory} writes them again, from its checkpoint",)
    return Summary(
        notes=notes,
        directory=directory,
        name=record.name,
        state=state,
        steps_made=record.steps_made,
        steps=record.steps,
        loss=record.loss,
        held_out=record.held_out,
        memory=record.memory,
        forecast=None if record.forecast is None else record.forecast.allocated,
        seconds=record.seconds,
        started=record.started,
        updated=record.updated,
        error=record.error,
    )


def _of_files(directory: Path) -> Summary:
    """Of a run without a record: older than records are, or not begun."""
    recipe = read_toml(directory / RECIPE)
    metrics, notes = metrics_of(directory)
    steps, evaluations = metrics.of("step"), metrics.of("evaluation")
    name, train = recipe.get("name"), recipe.get("train")
    asked = train.get("steps") if isinstance(train, dict) and "epochs" not in train else None
    last = steps[-1] if steps else {}
    forecast = read_json(directory / MEMORY).get("forecast")
    allocated = forecast.get("allocated") if isinstance(forecast, dict) else None
    return Summary(
        directory=directory,
        name=name if isinstance(name, str) else directory.name,
        state="unknown",
        steps_made=last.get("step"),
        steps=counted(asked),
        loss=number(last.get("loss")),
        held_out=held_out_of(evaluations[-1]) if evaluations else None,
        memory=_memory_of(last),
        forecast=counted(allocated) or None,
        seconds=sum(number(line.get("seconds")) or 0.0 for line in (*steps, *evaluations)) or None,
        updated=_touched(directory),
        notes=notes,
    )


def _memory_of(line: Mapping[str, Any]) -> MemoryRecord | None:
    kinds: tuple[Literal["gpu", "host"], ...] = ("gpu", "host")
    for kind in kinds:
        peak, reserved = line.get(f"{kind}_memory_peak"), line.get(f"{kind}_memory_reserved_peak")
        if (found := counted(peak)) is not None:
            return MemoryRecord(kind=kind, peak=found, reserved=counted(reserved))
    return None


def _touched(directory: Path) -> str | None:
    """When a file of a run's was last written."""
    times = []
    for name in (METRICS, RECIPE, ENVIRONMENT):
        with contextlib.suppress(OSError):
            times.append((directory / name).stat().st_mtime)
    if not times:
        return None
    try:
        return datetime.fromtimestamp(max(times), timezone.utc).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):  # a year that no calendar has
        return None
