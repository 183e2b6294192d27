"""One run in full: `ft runs show`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fitune.errors import RunError
from fitune.runs.history.list import as_json as summary_json
from fitune.runs.history.summary import Summary, metrics_of, must_be_run, number, summarise
from fitune.runs.history.values import choices
from fitune.runs.history.words import (
    NOTHING,
    aligned,
    duration_text,
    held_out_text,
    loss_text,
    share_text,
    size_text,
    steps_text,
    when_text,
)
from fitune.runs.layout import CHECKPOINTS, MEMORY, RECIPE, read_json, read_toml
from fitune.runs.lines import Line
from fitune.runs.record import RunRecord, read_record

POINTS = 10
"""Steps whose loss is shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file or directory of the run, with the bytes in it."""

    name: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """All that is known of a run."""

    summary: Summary
    record: RunRecord | None
    choices: tuple[tuple[str, str], ...]
    """The main ones of its recipe: (what, which)."""
    memory: dict[str, Any]
    """What `memory.json` holds: a GPU run's forecast beside what was measured."""
    checkpoints: tuple[File, ...]
    files: tuple[File, ...]
    points: tuple[tuple[int, float | None], ...]
    """(step, loss) of some steps, the first and the last among them."""
    evaluations: tuple[dict[str, Any], ...]
    notices: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]
    """What of its files cannot be read."""
    lines: Sequence[Line] = ()
    """Of its metrics, as they are."""


def tell(directory: Path) -> Story:
    """What a run's directory tells. Raises `RunError` if it holds no run; digests of checkpoints are not looked at."""
    must_be_run(directory)
    summary = summarise(directory)
    record: RunRecord | None = None
    with contextlib.suppress(RunError):  # the summary has noted it
        record = read_record(directory)
    metrics, wrong = metrics_of(directory, record)
    home = directory / CHECKPOINTS
    checkpoints = [file for file in _files(home) if re.fullmatch(r"step-\d+", file.name)]
    losses = [(line.step, number(line.values.get("loss"))) for line in metrics.lines if line.event == "step"]
    return Story(
        summary=summary,
        record=record,
        choices=tuple(choices(read_toml(directory / RECIPE))),
        memory=read_json(directory / MEMORY),
        checkpoints=tuple(sorted(checkpoints, key=lambda file: int(file.name.removeprefix("step-")))),
        files=tuple(file for file in _files(directory) if file.name != home.name),
        points=tuple(spread(losses, POINTS)),
        evaluations=tuple(metrics.of("evaluation")),
        notices=tuple(metrics.of("notice")),
        notes=tuple(dict.fromkeys((*summary.notes, *wrong))),
        lines=metrics.lines,
    )


def spread(things: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the things, evenly spread, the first and the last among them."""
    if len(things) <= most:
        return list(things)
    return [things[round(place * (len(things) - 1) / (most - 1))] for place in range(most)]


def as_json(story: Story) -> dict[str, Any]:
    """The same for programs."""
    return {
        **summary_json(story.summary),
        "record": None if story.record is None else asdict(story.record),
        "recipe": dict(story.choices),
        "memory_file": story.memory or None,
        "checkpoints": [asdict(file) for file in story.checkpoints],
        "files": [asdict(file) for file in story.files],
        "losses": [{"step": step, "loss": loss} for step, loss in story.points],
        "evaluations": list(story.evaluations),
        "notices": list(story.notices),
        "notes": list(story.notes),
    }


def lines(story: Story) -> Iterator[str]:
    """The same for people."""
    run = story.summary
    yield f"{run.name}  {run.state}  in {run.directory}"
    yield from aligned([*_figures(story), *story.choices])
    if story.record is not None and len(story.record.starts) > 1:
        yield from _section("starts", [(when_text(s.started), f"after {s.from_step:,} steps", s.how or run.state)
                                       for s in story.record.starts])  # fmt: skip
    rows = [(f"{step:,}", loss_text(loss)) for step, loss in story.points]
    yield from _section("loss", [("step", "training"), *rows] if rows else [])
    evaluated = [_evaluation(line) for line in story.evaluations]
    yield from _section("held out", [("step", "loss", "exact match"), *evaluated] if evaluated else [])
    best = None if story.record is None or story.record.best is None else f"step-{story.record.best.step}"
    kept = [(file.name, size_text(file.bytes), "best" if file.name == best else "") for file in story.checkpoints]
    yield from _section("checkpoints", kept)
    yield from _section("files", [(file.name, size_text(file.bytes)) for file in story.files])
    said = [f"{line.get('kind')} after {line.get('step')} steps: {line.get('what')}" for line in story.notices]
    yield from _section("notices", [(text,) for text in said])
    yield from _section("notes", [(note,) for note in story.notes])


def _figures(story: Story) -> Iterator[tuple[str, str]]:
    run, record = story.summary, story.record
    yield "steps", steps_text(run.steps_made, run.steps)
    yield "loss", loss_text(run.loss)
    yield "held out", held_out_text(run.held_out)
    if record is not None and record.best is not None:
        yield "best", held_out_text(record.best)
    if record is not None and record.early:
        yield "ended", "early: evaluations were no better ([eval] patience)"
    if record is not None and record.saved is not None and record.saved != record.steps_made:
        yield "saved", f"what was trained in {record.saved:,} steps"
    yield from _memory(story)
    spent = duration_text(run.seconds)
    yield "time", spent if record is None or len(record.starts) < 2 else f"{spent} in {len(record.starts)} starts"
    if record is not None and record.tokens and record.seconds:
        yield "tokens", f"{record.tokens:,}"
    yield "last heard of", when_text(run.updated)
    if run.holder is not None:
        yield "written by", run.holder
    if run.error is not None:
        yield "ended by", run.error
    if record is not None:
        yield "device", record.device
        if record.attention:
            yield "attention", ", ".join(record.attention)
        yield "trains", f"{record.trainable:,} of {record.parameters:,} parameters"


def _memory(story: Story) -> Iterator[tuple[str, str]]:
    """What was measured, and beside it what was forecast."""
    measured, record = story.summary.memory, story.record
    forecast = None if record is None else record.forecast
    foreseen = story.summary.forecast if forecast is None else forecast.allocated
    if measured is not None:
        beside = "" if foreseen is None else f", {size_text(foreseen)} forecast"
        yield "memory", f"{size_text(measured.peak)} of {measured.kind} memory measured{beside}"
    elif foreseen is not None:
        yield "memory", f"{size_text(foreseen)} forecast"
    if measured is not None and measured.reserved is not None:
        beside = "" if forecast is None else f", {size_text(forecast.reserved)} forecast"
        yield "reserved", f"{size_text(measured.reserved)} measured{beside}"


def _evaluation(line: dict[str, Any]) -> tuple[str, str, str]:
    return (
        str(line.get("step", NOTHING)),
        loss_text(number(line.get("loss"))),
        share_text(number(line.get("exact_match"))),
    )


def _section(title: str, rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows under a title; nothing where there are none."""
    return ["", title, *(f"  {line}" for line in aligned(rows))] if rows else []


def _files(directory: Path) -> list[File]:
    """What is in a directory, but for hidden files; what cannot be looked at has no bytes."""
    try:
        places = sorted(place for place in directory.iterdir() if not place.name.startswith("."))
    except OSError:
        return []
    return [File(name=place.name, bytes=_bytes(place)) for place in places]


def _bytes(place: Path) -> int:
    with contextlib.suppress(OSError):
        if not place.is_dir():
            return place.stat().st_size
        return sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
    return 0
