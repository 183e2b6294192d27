"""The lines of a run's `metrics.jsonl`, read so that a damaged one harms no other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAME = "metrics.jsonl"


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
    """Lines that cannot be read. The last one, if its end is missing, is not among them: a killed run leaves it so."""

    def of(self, event: str) -> list[dict[str, Any]]:
        """What the lines of one kind say, in their order."""
        return [line.values for line in self.lines if line.event == event]


def read_metrics(directory: Path) -> Metrics:
    """Those of a run's directory; none where the file is not there. Raises `OSError` where it cannot be read."""
    try:
        *whole, _ = (directory / NAME).read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return Metrics()
    found = [line for text in whole if (line := _line(text)) is not None]
    return Metrics(lines=found, damaged=len(whole) - len(found))


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


def _line(text: str) -> Line | None:
    try:
        values = json.loads(text)
    except ValueError:  # what a full disk or a power failure left of it
        return None
    if not isinstance(values, dict) or not isinstance(values.get("event"), str):
        return None
    step = values.get("step", 0)
    if isinstance(step, bool) or not isinstance(step, int):
        return None
    return Line(text=text, event=values["event"], step=step, values=values)
