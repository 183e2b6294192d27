"""The lines of a run's `metrics.jsonl`, read so that a damaged one harms no other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fitune.plugin.reading import json_of, read_file
from fitune.runs.layout import METRICS

LARGEST = 1 << 32
"""Bytes of it that are read at most."""

LATEST = 10**12
"""Steps that a line may tell of at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A whole line: its text, and what it says."""

    text: str
    event: str
    step: int
    """Steps that were made; 0 for a line that does not say."""
    values: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """All that can be read of the file."""

    lines: Sequence[Line] = ()
    damaged: int = 0
    """Lines that cannot be read, but for the last one."""
    torn: bool = False
    """Whether the last line has no end: a killed run, or a full disk, leaves it so."""
    absent: bool = False
    """Whether there is no file."""

    def of(self, event: str) -> list[dict[str, Any]]:
        """What the lines of one kind say, in their order."""
        return [line.values for line in self.lines if line.event == event]


def read_metrics(directory: Path) -> Metrics:
    """Those of a run's directory; none where the file is not there. Raises `OSError` where it cannot be read."""
    try:
        *whole, rest = read_file(directory / METRICS, LARGEST).decode(errors="replace").split("\n")
    except FileNotFoundError:
        return Metrics(absent=True)
    found = [line for text in whole if (line := line_of(text)) is not None]
    return Metrics(lines=found, damaged=len(whole) - len(found), torn=bool(rest))


def readable_metrics(directory: Path) -> Metrics:
    """As `read_metrics`; none where they cannot be read."""
    try:
        return read_metrics(directory)
    except OSError:
        return Metrics()


def line_of(text: str) -> Line | None:
    """A line; None for what is none, or none to work with."""
    try:
        values = json_of(text)
    except ValueError:  # what a full disk or a power failure left of it
        return None
    if not isinstance(values, dict) or not isinstance(values.get("event"), str):
        return None
    step = values.get("step", 0)
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step <= LATEST:
        return None
    return Line(text=text, event=values["event"], step=step, values=values)


def until(metrics: Metrics, step: int, evaluated: int) -> list[Line]:
    """Lines of what was made up to a step, and need not be made again: one for each step and each evaluation.

    `evaluated` is the step of the last evaluation that need not be repeated.
    """
    kept: dict[object, Line] = {}
    for number, line in enumerate(metrics.lines):
        if line.step <= (evaluated if line.event == "evaluation" else step):
            once = line.event in ("step", "evaluation")
            kept[(line.event, line.step) if once else number] = line
    return list(kept.values())
