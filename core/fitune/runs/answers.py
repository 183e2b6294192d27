"""A run's `examples.json`: held-out answers of its first evaluation that generated any, and of its last."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fitune.plugin.events import Answer
from fitune.plugin.reading import read_json
from fitune.runs.atomic import write_file
from fitune.runs.layout import ANSWERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """The answers of one evaluation."""

    step: int
    answers: Sequence[Answer]


def write_answers(directory: Path, last: Answered, first: Answered | None) -> None:
    """Write both, whole; `first` is None where the first is the last. Raises `OSError`."""
    values = _plain(last) if first is None else {**_plain(last), "before": _plain(first)}
    write_file(directory / ANSWERS, json.dumps(values, ensure_ascii=False, indent=2) + "\n")


def first_answers(directory: Path, evaluated: int) -> Answered | None:
    """Those of the first evaluation of a run that goes on, if it was made up to the step `evaluated`: later ones are
    made again. None where there are none that can be read.
    """
    try:
        values = read_json(directory / ANSWERS)
        found = _read(values.get("before", values))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return found if found.step <= evaluated and found.answers else None


def _plain(answered: Answered) -> dict[str, Any]:
    return {"step": answered.step, "answers": [dataclasses.asdict(answer) for answer in answered.answers]}


def _read(values: dict[str, Any]) -> Answered:
    return Answered(step=int(values["step"]), answers=[Answer(**answer) for answer in values["answers"]])
