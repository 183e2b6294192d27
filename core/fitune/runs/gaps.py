"""Lines that a `metrics.jsonl` should have and has not: found, told, and filled from what a checkpoint knows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from fitune.runs.layout import METRICS, RECIPE, read_toml
from fitune.runs.lines import Line, Metrics, line_of

KEPT = 1000
"""Newest lines of steps, and as many of evaluations, that a checkpoint knows (some 300 KB)."""

SHOWN = 3
"""Stretches of missing steps that a sentence names."""

ONCE = ("step", "evaluation")
"""Events of which there is one line for each step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """Lines to go on with, and what was wrong with those that were there."""

    lines: Sequence[Line]
    filled: int
    """Lines that a checkpoint knew."""
    wrong: Sequence[str]
    """What was wrong, in parts of a sentence; empty where nothing was."""
    missing: Sequence[int]
    """Steps whose lines are lost."""

    @property
    def outcome(self) -> str:
        """What came of it, in a sentence without its end."""
        back = f"{self.filled} put back, from the checkpoint" if self.filled else ""
        lost = f"{len(self.missing)} lost" if self.missing else ""
        return "; ".join(filter(None, (back, lost))) or "No line of a step that need not be made again is lost"


def known_lines(texts: object) -> list[Line]:
    """The lines that a checkpoint holds, those that can be read."""
    found = texts if isinstance(texts, list) else []
    lines = [line for text in found if isinstance(text, str) and (line := line_of(text)) is not None]
    return [line for line in lines if line.event in ONCE]


def fill(
    metrics: Metrics, kept: Sequence[Line], known: Sequence[Line], made: int, spacing: Mapping[int, int]
) -> Filled:
    """The lines that are kept of a file, with those of a checkpoint that are not among them, or not as they were.

    `made` are the steps that were made by then, `spacing` as that of `missing`.
    """
    there = {(line.event, line.step): line for line in kept if line.event in ONCE}
    right = {(line.event, line.step): line for line in known}
    lost = [line for key, line in right.items() if key not in there]
    changed = [key for key, line in right.items() if key in there and there[key].text != line.text]
    lines = [right.get((line.event, line.step), line) if line.event in ONCE else line for line in kept]
    for line in lost:
        lines.insert(_place(lines, line), line)
    gone = missing(lines, made, spacing)
    wrong = _wrong(metrics, len(changed))
    if lost or gone:
        steps = sorted({line.step for line in lost if line.event == "step"} | set(gone))
        of_steps = [f"{steps_text(steps)} missing"] if steps else []
        evaluated = sum(line.event == "evaluation" for line in lost)
        wrong += [*of_steps, *([f"{_lines(evaluated, 'evaluations')} missing"] if evaluated else [])]
    return Filled(lines=lines, filled=len(lost) + len(changed), wrong=wrong, missing=gone)


def missing(lines: Iterable[Line], made: int, spacing: Mapping[int, int]) -> list[int]:
    """Steps up to `made` that should have a line and have none; `spacing` says how many steps are between two lines, by
    the number of steps after which that began to hold.
    """
    there = {line.step for line in lines if line.event == "step"}
    found: list[int] = []
    starts = sorted(spacing)
    for start, end in zip(starts, [*starts[1:], made], strict=True):
        every = spacing[start]
        first = (start // every + 1) * every
        found += [step for step in range(first, min(end, made) + 1, every) if step not in there]
    return found


def spacing_of(metrics: Metrics, every: int) -> dict[int, int] | None:
    """How many steps were between two lines, by the step after which that began to hold, where it is `every` now; None
    where an older start did not say.
    """
    resumed = metrics.of("resume")
    if any(not isinstance(line.get("every"), int) or line["every"] < 1 for line in resumed):
        return None
    found = {0: resumed[0].get("before", resumed[0]["every"]) if resumed else every}
    found |= {line["step"]: line["every"] for line in resumed if isinstance(line.get("step"), int)}
    return found if all(isinstance(one, int) and one > 0 for one in found.values()) else None


def notes(directory: Path, metrics: Metrics, made: int | None, *, held: bool) -> tuple[str, ...]:
    """What is wrong with a run's metrics, in sentences; `made` are the steps that it has made, where that is known.

    `held` says that the run is at work, and may be writing its last line.
    """
    file = directory / METRICS
    every = _every(directory)
    if every is None:  # it writes none
        return ()
    if metrics.absent:
        return (f"{file} is missing, with the numbers of all steps",) if made else ()
    wrong = _wrong(metrics, 0, held=held)
    spacing = spacing_of(metrics, every)
    last = max((line.step for line in metrics.lines if line.event == "step"), default=0)
    if spacing is not None and (gone := missing(metrics.lines, max(last, made or 0), spacing)):
        wrong.append(f"{steps_text(gone)} missing")
    return (f"{file}: {', '.join(wrong)}",) if wrong else ()


def steps_text(steps: Sequence[int]) -> str:
    """Steps whose lines are spoken of, e.g. "the lines of steps 4 to 6 and 9 are"."""
    stretches: list[tuple[int, int]] = []
    gap = min((after - before for before, after in pairwise(steps)), default=1)
    for step in steps:
        if stretches and step - stretches[-1][1] == gap:
            stretches[-1] = (stretches[-1][0], step)
        else:
            stretches.append((step, step))
    words = [f"{first:,}" if first == last else f"{first:,} to {last:,}" for first, last in stretches[:SHOWN]]
    words += ["others"] if len(stretches) > SHOWN else []
    listed = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
    return f"the line of step {listed} is" if len(steps) == 1 else f"the lines of steps {listed} are"


def _wrong(metrics: Metrics, changed: int, *, held: bool = False) -> list[str]:
    wrong = []
    if metrics.damaged:
        wrong.append(f"{_lines(metrics.damaged)} damaged, and left out")
    if changed:
        wrong.append(f"{_lines(changed)} not what was written")
    if metrics.torn and not held:
        wrong.append("the last line is torn")
    return wrong


def _lines(number: int, what: str = "it") -> str:
    return f"1 line of {what} is" if number == 1 else f"{number} lines of {what} are"


def _place(lines: Sequence[Line], line: Line) -> int:
    """Where a line belongs that is missing: a step's before all else of that step, an evaluation's behind."""
    for number, other in enumerate(lines):
        if other.step > line.step or (line.event == "step" and other.step == line.step and other.event != "resume"):
            return number
    return len(lines)


def _every(directory: Path) -> int | None:
    """Steps between two lines, as the run's recipe has it; None where it writes none."""
    recipe = read_toml(directory / RECIPE)
    found: Any = recipe.get("listener")
    if found is None:  # of 0.1, or not to be read
        log = recipe.get("log")
        found = [{"use": "metrics", **log}] if isinstance(log, dict) else [{"use": "metrics"}]
    tables = [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
    every = next((one.get("every", 1) for one in tables if one.get("use") == "metrics"), None)
    return every if isinstance(every, int) and not isinstance(every, bool) and every > 0 else None
