"""Runs side by side: `ft runs compare`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fitune.errors import RunError
from fitune.runs.history.list import as_json as summary_json
from fitune.runs.history.show import POINTS, spread
from fitune.runs.history.summary import Summary, metrics_of, must_be_run, number, summarise
from fitune.runs.history.values import differing, value_text
from fitune.runs.history.words import aligned, duration_text, loss_text, memory_text, share_text, size_text, steps_text
from fitune.runs.layout import ENVIRONMENT, RECIPE, read_json, read_toml

Row = tuple[str, tuple[Any, ...]]
"""A key, and its value in each run."""

UNTOLD = ("command", "recipe", "plugins")
"""Of an environment: what says nothing of how a run computes, or is told by its recipe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Some runs, and where they differ."""

    runs: tuple[Summary, ...]
    recipe: tuple[Row, ...]
    """Keys that are not the same in all."""
    environment: tuple[Row, ...]
    losses: tuple[tuple[int, tuple[float | None, ...]], ...]
    """(step, its loss in each run), of some of the steps that all of them have made."""
    evaluations: tuple[tuple[int, tuple[float | None, ...], tuple[float | None, ...]], ...]
    """(step, held-out loss in each, exact match in each), of all steps after which all were evaluated."""
    speeds: tuple[float | None, ...]
    """Tokens a second, the first steps left out; measured."""
    notes: tuple[str, ...]


def compare(directories: Sequence[Path]) -> Comparison:
    """Compare runs. Raises `RunError` for fewer than two, and for a directory that holds none."""
    if len(directories) < 2:
        raise RunError("one run alone has nothing to be compared with. Name two or more: ft runs compare A B")
    for directory in directories:
        must_be_run(directory)
    runs = tuple(map(summarise, directories))
    read = [metrics_of(directory) for directory in directories]
    steps = [{line.step: line.values for line in metrics.lines if line.event == "step"} for metrics, _ in read]
    held_out = [{line.step: line.values for line in metrics.lines if line.event == "evaluation"} for metrics, _ in read]
    environments = [read_json(directory / ENVIRONMENT) for directory in directories]
    told = [{key: value for key, value in one.items() if key not in UNTOLD} for one in environments]
    notes = [note for run, (_, wrong) in zip(runs, read, strict=True) for note in (*run.notes, *wrong)]
    return Comparison(
        runs=runs,
        recipe=tuple(differing([read_toml(directory / RECIPE) for directory in directories])),
        environment=tuple(differing(told)),
        losses=tuple((step, _each(steps, step, "loss")) for step in spread(_common(steps), POINTS)),
        evaluations=tuple(
            (step, _each(held_out, step, "loss"), _each(held_out, step, "exact_match")) for step in _common(held_out)
        ),
        speeds=tuple(map(_speed, steps)),
        notes=tuple(dict.fromkeys(notes)),
    )


def as_json(found: Comparison) -> dict[str, Any]:
    """The same for programs."""
    names = [str(run.directory) for run in found.runs]

    def by_run(values: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(names, values, strict=True))

    return {
        "runs": [summary_json(run) for run in found.runs],
        "recipe": {key: by_run(values) for key, values in found.recipe},
        "environment": {key: by_run(values) for key, values in found.environment},
        "losses": [{"step": step, "loss": by_run(values)} for step, values in found.losses],
        "evaluations": [
            {"step": step, "loss": by_run(losses), "exact_match": by_run(matches)}
            for step, losses, matches in found.evaluations
        ],
        "tokens_per_second": by_run(found.speeds),
        "notes": list(found.notes),
    }


def lines(found: Comparison) -> Iterator[str]:
    """The same for people: a column a run."""
    head = tuple(str(run.directory) for run in found.runs)
    yield from aligned([("", *head), *_figures(found)])
    yield from _section("recipe, where they differ", head, _rows(found.recipe))
    yield from _section("environment, where they differ", head, _rows(found.environment))
    rows = [(f"{step:,}", *map(loss_text, values)) for step, values in found.losses]
    yield from _section("training loss at steps that all have made", head, rows)
    evaluated = [(f"{step:,}", *map(loss_text, losses)) for step, losses, _ in found.evaluations if any_of(losses)]
    yield from _section("held-out loss", head, evaluated)
    matched = [(f"{step:,}", *map(share_text, shares)) for step, _, shares in found.evaluations if any_of(shares)]
    yield from _section("held-out exact match", head, matched)
    if found.notes:
        yield from ("", *(f"note: {note}" for note in found.notes))


def any_of(values: Sequence[object]) -> bool:
    """Whether any of them is known."""
    return any(value is not None for value in values)


def _figures(found: Comparison) -> Iterator[tuple[str, ...]]:
    """What became of each."""
    runs = found.runs
    yield "state", *(run.state for run in runs)
    yield "steps", *(steps_text(run.steps_made, run.steps) for run in runs)
    yield "loss", *(loss_text(run.loss) for run in runs)
    yield "held-out loss", *(loss_text(run.held_out.loss if run.held_out else None) for run in runs)
    yield "exact match", *(share_text(run.held_out.exact_match if run.held_out else None) for run in runs)
    yield "memory, measured", *(memory_text(run.memory) for run in runs)
    yield "memory, forecast", *(size_text(run.forecast) for run in runs)
    yield "tokens/s", *("-" if speed is None else f"{speed:,.0f}" for speed in found.speeds)
    yield "time", *(duration_text(run.seconds) for run in runs)


def _rows(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    return [(key, *map(value_text, values)) for key, values in rows]


def _section(title: str, head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    return ["", title, *(f"  {line}" for line in aligned([("", *head), *rows]))] if rows else []


def _common(each: Sequence[dict[int, Any]]) -> list[int]:
    """Steps that are in all of them."""
    return sorted(set(each[0]).intersection(*each[1:]))


def _each(runs: Sequence[dict[int, dict[str, Any]]], step: int, key: str) -> tuple[float | None, ...]:
    return tuple(number(run[step].get(key)) for run in runs)


def _speed(steps: dict[int, dict[str, Any]]) -> float | None:
    """Tokens a second over a run's steps, without the first tenth of them, in which kernels are chosen and compiled."""
    kept = [steps[step] for step in sorted(steps)][-(-len(steps) // 10) :]
    tokens = sum(number(line.get("tokens")) or 0.0 for line in kept)
    seconds = sum(number(line.get("seconds")) or 0.0 for line in kept)
    return tokens / seconds if seconds else None
