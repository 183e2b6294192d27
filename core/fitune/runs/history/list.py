"""A list of runs, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fitune.runs.history.summary import Summary
from fitune.runs.history.words import (
    NOTHING,
    aligned,
    duration_text,
    loss_text,
    memory_text,
    share_text,
    size_text,
    steps_text,
    when_text,
)

HEAD = ("RUN", "STATE", "STEPS", "LOSS", "HELD OUT", "EXACT", "MEASURED", "FORECAST", "TIME", "LAST HEARD OF")


def table(runs: Sequence[Summary]) -> list[str]:
    """A line a run; below them why some failed, and what cannot be read."""
    lines = aligned([HEAD, *map(_cells, runs)])
    failed = [(str(run.directory), run.error) for run in runs if run.state == "failed" and run.error]
    if failed:
        lines += ["", "FAILED", *aligned(failed)]
    notes = [note for run in runs for note in run.notes]
    return [*lines, *(["", *(f"note: {note}" for note in notes)] if notes else [])]


def as_json(run: Summary) -> dict[str, Any]:
    """The same for programs: bytes, seconds, times in UTC."""
    return {**asdict(run), "directory": str(run.directory), "notes": list(run.notes)}


def _cells(run: Summary) -> tuple[str, ...]:
    held_out = run.held_out
    return (
        str(run.directory),
        run.state if run.launched is None else f"{run.state} on {run.launched.partition(',')[0]}",
        steps_text(run.steps_made, run.steps),
        loss_text(run.loss),
        loss_text(held_out.loss) if held_out else NOTHING,
        share_text(held_out.exact_match) if held_out else NOTHING,
        memory_text(run.memory),
        size_text(run.forecast),
        duration_text(run.seconds),
        when_text(run.updated),
    )
