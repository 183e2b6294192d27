"""What became of a run, in one small file of its directory: `run.json`. It is there whole or not at all."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from annotated_types import Ge, Gt, Lt

from fitune.errors import RunError, one_line
from fitune.plugin.events import EvalReport
from fitune.plugin.reading import read_json
from fitune.recipe.secrets import redacted_values
from fitune.runs.atomic import write_file
from fitune.runs.json_lines import finite
from fitune.runs.layout import RECORD

SCHEMA = 1

Count: TypeAlias = Annotated[int, Ge(0), Lt(2**63)]
"""Of steps, tokens, parameters or bytes: what a record can hold that was counted."""

Figure: TypeAlias = Annotated[float, Gt(-1e39), Lt(1e39)]
"""That was measured; float32 has none beyond."""

Seconds: TypeAlias = Annotated[float, Ge(0), Lt(1e12)]

State = Literal["running", "done", "stopped", "failed"]
"""As written. A run whose process was killed leaves "running", and a lock that nobody holds."""

Ending = Literal["done", "stopped", "failed", "interrupted"]
"""How a start of a run ended; "interrupted" is what the next one finds of a process that was killed."""


EARLY = "ended early"
"""The kind of notice of a run that ends for want of better evaluations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRecord:
    """One start of a run: the first, or one that goes on."""

    started: str
    """In ISO 8601, UTC, like every time here."""
    from_step: Count
    """Steps that were made before."""
    ended: str | None = None
    """None while it is at work, or where it was killed."""
    how: Ending | None = None
    phases: Mapping[str, Seconds] = field(default_factory=dict)
    """Seconds to the first step, by phases, from the start of the process: imports, data, weights and so on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Figures of one evaluation."""

    step: Count
    loss: Figure | None = None
    exact_match: Figure | None = None
    """Share of exact answers, 0 to 1."""

    measure: Figure | None = None
    """Mean of what `[eval] best_by` names of the objective's measures."""

    @classmethod
    def of(cls, report: EvalReport, by: str = "") -> HeldOut:
        """Those that a report tells; a loss that is no number is none. `by` is `[eval] best_by`."""
        measure = finite(report.metrics.get(by))
        return cls(step=report.step, loss=finite(report.loss), exact_match=report.exact_match, measure=measure)

    def judged(self, by: str = "") -> tuple[float | None, int]:
        """What it is judged by, and 1 where more of that is better, -1 where less is."""
        by = by or ("loss" if self.exact_match is None else "exact_match")
        if by == "loss":
            return self.loss, -1
        return (self.exact_match if by == "exact_match" else self.measure), 1

    def beats(self, best: HeldOut | None, by: str = "") -> bool:
        """Whether this is the better evaluation. One before training beats none."""
        value, sign = self.judged(by)
        if self.step == 0 or value is None:
            return False
        other = None if best is None else best.judged(by)[0]
        if best is not None and best.judged(by)[1] != sign:  # answers were generated in one of the two alone
            return self.loss is not None and (best.loss is None or self.loss < best.loss)
        return other is None or sign * (value - other) > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRecord:
    """The most of all starts, measured, in bytes."""

    kind: Literal["gpu", "host"]
    peak: Count
    reserved: Count | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastRecord:
    """What the last composition of the run was forecast to take, in bytes."""

    card: str
    allocated: Count
    reserved: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """All that a list of runs shows."""

    schema: int = SCHEMA
    name: str
    state: State
    steps_made: Count
    steps: Count
    """Optimizer steps that the run will make."""
    started: str
    updated: str
    """When this was written."""
    ended: str | None = None
    seconds: Seconds = 0.0
    """From being ready to train to the end, over all starts; steps that had to be made again included."""
    starts: tuple[StartRecord, ...]
    tokens: Count = 0
    """That are not padding, over all starts; those of steps that had to be made again included."""
    loss: Figure | None = None
    """Of the last step; None before the first, or if it is not finite."""
    held_out: HeldOut | None = None
    """Of the last evaluation."""
    best: HeldOut | None = None
    """Of the best evaluation after training began: the highest exact match, or else the lowest loss."""
    early: bool = False
    """Whether it ended before its last step, for want of better evaluations."""
    saved: Count | None = None
    """After how many steps what it ended with was trained."""
    memory: MemoryRecord | None = None
    forecast: ForecastRecord | None = None
    attention: tuple[str, ...] = ()
    """The kernels of attention that ran, by name, as the dispatcher was asked for them: of the last composition."""
    error: str | None = None
    """What ended the run, in a line; None if nothing did."""
    device: str
    model: str
    adapter: str
    trainable: Count
    """Parameters that train."""
    parameters: Count
    """Parameters in all."""


def write_record(directory: Path, record: RunRecord) -> None:
    """Write it into a run's directory. Raises `OSError`."""
    values = redacted_values(finite(dataclasses.asdict(record)))
    write_file(directory / RECORD, json.dumps(values, allow_nan=False, indent=1) + "\n")


LARGEST = 1 << 24
"""Bytes of a record, at most; one of a thousand starts has a hundred thousand."""


def read_record(directory: Path) -> RunRecord | None:
    """That of a run's directory; None where there is none. Raises `RunError` if it cannot be read."""
    from pydantic import TypeAdapter

    file = directory / RECORD
    try:
        values = read_json(file, LARGEST)
        if isinstance(values, dict) and isinstance(values.get("schema"), int) and values["schema"] > SCHEMA:
            raise RunError(f"{file} is of schema {values['schema']}, and this release reads {SCHEMA}. Update fitune")
        return TypeAdapter(RunRecord).validate_python(values)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # pydantic's is a ValueError of many lines, the first two of which say it
        said = one_line(" ".join(str(error).splitlines()[:3]))
        raise RunError(f"{file} cannot be read: {said}. What else is known of the run is in its other files") from error
