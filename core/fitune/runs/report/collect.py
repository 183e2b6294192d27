"""What a report tells of a run, read from its directory; nothing that is damaged there ends it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fitune.plugin.units import GIB
from fitune.recipe.secrets import redacted_values
from fitune.runs.card import published
from fitune.runs.history.show import Story, tell
from fitune.runs.history.summary import number
from fitune.runs.history.values import choices, value_text
from fitune.runs.layout import ANSWERS, ENVIRONMENT, IDENTITY, RECIPE, read_json, read_toml
from fitune.runs.lines import Line
from fitune.runs.report.measures import Measure, measures
from fitune.runs.report.series import Series, series

EXAMPLES = 8
"""Answers that are shown."""

LONGEST = 4000
"""Characters of a text that is shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A held-out question: what is right, and what was answered before training and after."""

    prompt: str
    expected: str
    before: str | None
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A run, for a report."""

    story: Story
    losses: Series
    rates: Series
    norms: Series
    speeds: Series
    memory: Series
    """In GiB, of the card or else of the host: the most since the step before."""
    memory_kind: str
    held_out: tuple[tuple[int, float | None, float | None], ...]
    """(step, loss, share of exact answers) of each evaluation."""
    measures: tuple[Measure, ...]
    """What the objective measures beside the loss."""
    objective: str
    processes: int
    fitted: str
    """The card that its strategies were chosen for by `[memory] fit`, or empty."""
    ledger: tuple[tuple[str, int], ...]
    """(What it is for, bytes) at the peak that was forecast."""
    forecast: Mapping[str, Any]
    measured: Mapping[str, Any]
    choices: tuple[str, ...]
    """What the run chose or changed, and why, in its own words."""
    examples: tuple[Example, ...]
    examples_steps: tuple[int | None, int]
    environment: tuple[tuple[str, str], ...]
    main: tuple[tuple[str, str], ...]
    """The main choices of its recipe: (what, which). A path of this machine is given by its last part."""
    recipe: tuple[tuple[str, str], ...]
    """All of its keys, dotted, with their values."""


def collect(directory: Path) -> Told:
    """What is known of a run. Raises `RunError` if the directory holds none."""
    story = tell(directory)
    lines = _once(story.lines)
    steps, evaluations = ([line for line in lines if line.event == event] for event in ("step", "evaluation"))
    identity = read_json(directory / IDENTITY)
    kind = "gpu" if any("gpu_memory_peak" in line.values for line in steps) else "host"
    peaks = [(step, value / GIB) for step, value in _numbers(steps, f"{kind}_memory_peak")]
    forecast, measured = (_mapping(story.memory.get(name)) for name in ("forecast", "measured"))
    answers = read_json(directory / ANSWERS)
    recipe = redacted_values(published(read_toml(directory / RECIPE)))
    return Told(
        story=story,
        losses=series("training loss", _numbers(steps, "loss")),
        rates=series("learning rate", _numbers(steps, "learning_rate")),
        norms=series("gradient norm", _numbers(steps, "grad_norm")),
        speeds=series("tokens a second", _numbers(steps, "tokens_per_second")),
        memory=series(f"{kind} memory", peaks),
        memory_kind=kind,
        held_out=tuple(_held_out(evaluations)),
        measures=measures(steps, evaluations),
        objective=str(_mapping(recipe.get("objective")).get("use", "sft")),
        processes=int(number(identity.get("processes")) or 1),
        fitted=_fitted(_mapping(_mapping(identity.get("recipe")).get("memory")).get("fit")),
        ledger=tuple(_ledger(forecast.get("ledger"))),
        forecast=forecast,
        measured=measured,
        choices=tuple(_choices(lines)),
        examples=tuple(_examples(answers)),
        examples_steps=_steps_of(answers),
        environment=tuple(_flat(redacted_values(published(read_json(directory / ENVIRONMENT))))),
        main=tuple(choices(recipe)),
        recipe=tuple(_flat(recipe)),
    )


def _once(lines: Sequence[Line]) -> list[Line]:
    """The last line of each step and each evaluation, in the order of steps; all of the others."""
    kept: dict[object, Line] = {}
    for at, line in enumerate(lines):
        kept[(line.event, line.step) if line.event in ("step", "evaluation") else at] = line
    return sorted(kept.values(), key=lambda line: line.step)


def _numbers(lines: Sequence[Line], key: str) -> list[tuple[int, float]]:
    found = ((line.step, number(line.values.get(key))) for line in lines)
    return [(step, value) for step, value in found if value is not None]


def _held_out(lines: Sequence[Line]) -> Iterator[tuple[int, float | None, float | None]]:
    for line in lines:
        yield line.step, number(line.values.get("loss")), number(line.values.get("exact_match"))


def _fitted(fit: Any) -> str:
    return fit if isinstance(fit, str) else "the card that it ran on" if fit is True else ""


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _ledger(value: Any) -> Iterator[tuple[str, int]]:
    for one in value if isinstance(value, list) else ():
        if isinstance(one, list) and len(one) == 2 and (size := number(one[1])) is not None:
            yield str(one[0]), int(size)


def _choices(lines: Sequence[Line]) -> Iterator[str]:
    for line in lines:
        if line.event == "notice":
            yield f"after {line.step:,} steps, {line.values.get('kind')}: {line.values.get('what')}"
        elif line.event == "recovery":
            yield _recovered(line)


def _recovered(line: Line) -> str:
    """That memory ran out, and what the run went on with."""
    values = line.values
    before, after = (", ".join(map(str, _list(values.get(key)))) or "no strategy" for key in ("before", "after"))
    said = (
        f"after {line.step:,} steps memory ran out in the {values.get('phase')}, with {before}; it went on with {after}"
    )
    rows = _list(values.get("micro_batch"))
    if len(rows) == 2 and rows[0] != rows[1]:
        said += f", {rows[1]} rows in a forward pass in place of {rows[0]}"
    return f"{said} ({values.get('error')})"


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _answers(values: Any) -> list[Mapping[str, Any]]:
    found = _mapping(values).get("answers")
    return [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []


def _examples(values: Mapping[str, Any]) -> Iterator[Example]:
    before = {str(one.get("prompt")): str(one.get("generated")) for one in _answers(values.get("before"))}
    for one in _answers(values)[:EXAMPLES]:
        first = before.get(str(one.get("prompt")))
        yield Example(
            prompt=_short(one.get("prompt")),
            expected=_short(one.get("expected")),
            before=None if first is None else _short(first),
            after=_short(one.get("generated")),
        )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ... ({len(text):,} characters)"


def _steps_of(values: Mapping[str, Any]) -> tuple[int | None, int]:
    steps = [_mapping(one).get("step") for one in (values.get("before"), values)]
    first, last = (one if isinstance(one, int) else None for one in steps)
    return first, last or 0


def _flat(values: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys with their values as TOML writes them."""
    if isinstance(values, Mapping):
        for key, inner in values.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(values, list) and any(isinstance(one, Mapping) for one in values):
        for at, inner in enumerate(values):
            yield from _flat(inner, f"{prefix}.{at}")
    else:
        yield prefix, _short(values if isinstance(values, str) else value_text(values))
