"""A report: one page of HTML that needs no network and no script, and in which all that comes of runs is text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from fitune.plugin.units import GIB
from fitune.runs.history.show import spread
from fitune.runs.history.summary import number
from fitune.runs.history.words import (
    NOTHING,
    duration_text,
    loss_text,
    memory_text,
    share_text,
    size_text,
    steps_text,
    when_text,
)
from fitune.runs.report.chart import Level, Marks, chart
from fitune.runs.report.collect import Told
from fitune.runs.report.series import Series, series
from fitune.runs.report.style import STYLE
from fitune.runs.report.text import text_of

ROWS = 12
"""Steps and evaluations that stand in tables, evenly spread."""

MARKS = 40
"""Evaluations that are marked one by one."""

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""What a browser may load for the page: nothing."""


def page(runs: Sequence[Told], version: str) -> str:
    """The page of one run, or of several: these are compared first, then each is told."""
    title = ", ".join(one.story.summary.name for one in runs)
    parts = [*_comparison(runs)] if len(runs) > 1 else []
    for one in runs:
        parts += _run(one)
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{text_of(title)}</title><style>{STYLE}</style></head><body>"
    )
    foot = f'<p class="soft">Written by fitune {text_of(version)}. What is not called a forecast was measured.</p>'
    return f"{head}{''.join(parts)}{foot}</body></html>\n"


def table(head: Sequence[str], rows: Sequence[Sequence[object]], numbers: Sequence[int] = (), *, kind: str = "") -> str:
    """A table; columns of `numbers` are set flush right; of kind "facts", the first column takes no more than it needs,
    and words of kind "runs" are not taken apart.
    """
    kinds = [' class="n"' if at in numbers else "" for at in range(len(head) or len(rows[0]))]
    top = "".join(f"<th{kind}>{text_of(cell)}</th>" for cell, kind in zip(head, kinds, strict=False))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{text_of(cell)}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>"
        for row in rows
    )
    opening = f'<table class="{kind}">' if kind else "<table>"
    return f'<div class="wide">{opening}{f"<tr>{top}</tr>" if head else ""}{body}</table></div>'


def _comparison(runs: Sequence[Told]) -> Iterator[str]:
    yield f"<h1>{len(runs)} runs</h1>"
    rows = []
    for one in runs:
        run = one.story.summary
        held = run.held_out
        rows.append(
            (
                f"{run.name} ({run.directory.name})",
                run.state,
                steps_text(run.steps_made, run.steps),
                loss_text(run.loss),
                loss_text(held.loss if held else None),
                share_text(held.exact_match if held else None),
                memory_text(run.memory),
                duration_text(run.seconds),
            )
        )
    head = ("run", "state", "steps", "loss", "held out", "exact", "memory", "time")
    yield table(head, rows, range(2, len(head)), kind="runs")
    yield '<div class="charts">'
    yield chart("Training loss", [_named(one, one.losses) for one in runs])
    yield chart("Held-out loss", _drawn(runs, _losses))
    yield chart("Held-out answers that are exact, %", _drawn(runs, _exact), zero=True)
    yield chart("Memory, GiB", [_named(one, one.memory) for one in runs], zero=True)
    yield chart("Tokens a second", [_named(one, one.speeds) for one in runs], zero=True)
    yield "</div>"


def _drawn(runs: Sequence[Told], points: Callable[[Told], Sequence[tuple[int, float]]]) -> list[Series]:
    """A line for each run, of one colour in all drawings; one without points is left out there."""
    return [_named(one, series("", points(one))) for one in runs]


def _named(one: Told, line: Series) -> Series:
    return replace(line, name=f"{one.story.summary.name} ({one.story.summary.directory.name})")


def _run(one: Told) -> Iterator[str]:
    run, record = one.story.summary, one.story.record
    kind = {"done": "good", "failed": "bad", "interrupted": "bad"}.get(run.state, "soft")
    yield f'<h1>{text_of(run.name)} <span class="state {kind}">{text_of(run.state)}</span></h1>'
    if run.error:
        yield f'<p class="bad">{text_of(run.error)}</p>'
    best = record.best if record else None
    facts = [
        ("steps", steps_text(run.steps_made, run.steps)),
        ("training loss", loss_text(run.loss)),
        ("held out, last", _held(run.held_out)),
        ("held out, best", _held(best)),
        ("memory, most", memory_text(run.memory)),
        ("time", duration_text(run.seconds)),
        ("tokens", f"{record.tokens:,}" if record else NOTHING),
        ("device", record.device if record else NOTHING),
        ("attention", ", ".join(record.attention) if record and record.attention else NOTHING),
        ("processes", f"{one.processes} (memory is the first one's)" if one.processes > 1 else NOTHING),
        ("started", when_text(run.started)),
        ("directory", run.directory.name),
    ]
    yield table((), [fact for fact in facts if fact[1] != NOTHING], kind="facts")
    yield from _training(one)
    yield from _memory(one)
    yield from _chosen(one)
    yield from _answers(one)
    yield from _details(one)


def _held(held: Any) -> str:
    if held is None:
        return NOTHING
    parts = [] if held.loss is None else [f"loss {loss_text(held.loss)}"]
    parts += [] if held.exact_match is None else [f"{share_text(held.exact_match)} exact"]
    return f"{', '.join(parts)} after {held.step:,} steps" if parts else NOTHING


def _training(one: Told) -> Iterator[str]:
    yield '<h2>Training</h2><div class="charts">'
    lines, marks = _evaluated("held-out loss", _losses(one))
    yield chart(_loss(one), [one.losses, *lines], marks)
    lines, marks = _evaluated("exact match", _exact(one))
    yield chart("Held-out answers that are exact, %", lines, marks, zero=True)
    for measure in one.measures:
        found = [_evaluated(name, points) for name, points in measure.held_out]
        lines = [line for lines, _ in found for line in lines]
        yield chart(measure.title, [*measure.lines, *lines], [mark for _, marks in found for mark in marks])
    yield chart("Learning rate", [one.rates], zero=True)
    yield chart("Gradient norm", [one.norms], zero=True)
    yield chart("Speed, tokens a second", [one.speeds], zero=True)
    yield "</div>"
    if one.held_out:
        yield f"<details><summary>Evaluations</summary>{_evaluations(one)}</details>"
    if one.losses.points:
        numbers = [
            (f"{p.step:,.0f}", loss_text(p.low), loss_text(p.mean), loss_text(p.high))
            for p in spread(one.losses.points, ROWS)
        ]
        head = ("step", "least", "mean", "most")
        yield f"<details><summary>Training loss in numbers</summary>{table(head, numbers, (0, 1, 2, 3))}</details>"


def _loss(one: Told) -> str:
    """Of tokens, or of what else the objective counts."""
    return "Loss, nats a token" if one.objective == "sft" else f"Loss of {one.objective}"


def _losses(one: Told) -> list[tuple[int, float]]:
    return [(step, loss) for step, loss, _ in one.held_out if loss is not None]


def _exact(one: Told) -> list[tuple[int, float]]:
    return [(step, 100 * share) for step, _, share in one.held_out if share is not None]


def _evaluations(one: Told) -> str:
    """In numbers, those of the objective's own among them."""
    own = {name: dict(points) for measure in one.measures for name, points in measure.held_out if "/" not in name}
    own = {name.removeprefix("held-out "): found for name, found in own.items()}
    rows = [
        (f"{step:,}", loss_text(loss), share_text(share), *(loss_text(found.get(step)) for found in own.values()))
        for step, loss, share in spread(one.held_out, ROWS)
    ]
    return table(("step", "loss", "exact", *own), rows, range(3 + len(own)))


def _evaluated(name: str, points: Sequence[tuple[int, float]]) -> tuple[list[Series], list[Marks]]:
    """Evaluations as marks, or as a line where these would hide what is behind them."""
    if len(points) > MARKS:
        return [series(name, points)], []
    return [], [Marks(name=name, points=tuple(points))] if points else []


def _peak(one: Told) -> str:
    return "Most allocated in a step, GiB" if one.memory_kind == "gpu" else "Host memory, the most so far, GiB"


def _memory(one: Told) -> Iterator[str]:
    """Memory over time beside its forecast, and both by what they are for."""
    levels = []
    if (size := number(one.forecast.get("allocated"))) and one.memory_kind == "gpu":
        levels.append(Level(name="forecast", value=size / GIB))
    yield "<h2>Memory</h2>"
    yield f'<div class="charts">{chart(_peak(one), [one.memory], levels=levels, zero=True)}</div>'
    rows = []
    for key in ("allocated", "reserved", "context"):
        said, found = number(one.forecast.get(key)), number(one.measured.get(key))
        if said is not None and found is not None:
            off = f"{100 * (said - found) / found:+.2f} %" if found else NOTHING
            rows.append((key, size_text(int(said)), size_text(int(found)), off))
    if rows:
        yield f"<h3>Forecast beside measured, on {text_of(one.forecast.get('card'))}</h3>"
        yield table(("", "forecast", "measured", "off by"), rows, (1, 2, 3))
    elif one.forecast.get("error"):
        yield f"<p>There is no forecast: {text_of(one.forecast['error'])}</p>"
    else:
        yield '<p class="soft">Nothing was forecast and measured for this run: that is done on a GPU.</p>'
    if one.ledger:
        yield "<h3>What the peak is for (forecast)</h3>"
        most = max(size for _, size in one.ledger) or 1
        body = "".join(
            f'<tr><td>{text_of(name)}</td><td class="n">{size_text(size)}</td>'
            f'<td class="bar"><i style="width:{100 * max(size, 0) / most:.1f}%"></i></td></tr>'
            for name, size in one.ledger
        )
        yield f'<div class="wide"><table>{body}</table></div>'


def _chosen(one: Told) -> Iterator[str]:
    yield "<h2>What was chosen, and why</h2>"
    if one.fitted:
        yield f"<p>Its strategies were chosen by <code>[memory] fit</code>, for {text_of(one.fitted)}.</p>"
    if one.main:
        yield table((), one.main, kind="facts")
    if one.choices:
        shown = spread(one.choices, 50)
        yield "<h3>What the run said of it</h3><ul>" + "".join(f"<li>{text_of(said)}</li>" for said in shown) + "</ul>"
        if len(shown) < len(one.choices):
            yield f'<p class="soft">{len(shown)} of {len(one.choices):,} notices are shown, evenly spread.</p>'
    for note in one.story.notes:
        yield f'<p class="bad">{text_of(note)}</p>'


def _answers(one: Told) -> Iterator[str]:
    if not one.examples:
        return
    first, last = one.examples_steps
    yield "<h2>Held-out answers</h2>"
    for example in one.examples:
        right = example.after.strip() == example.expected.strip()
        boxes = [("expected", example.expected, "")]
        if example.before is not None:
            boxes.append((f"before ({first or 0:,} steps)", example.before, ""))
        when = f"after ({last:,} steps)" if last else "before training"
        boxes.append((when, example.after, "good" if right else "bad"))
        yield f"<h3>Question</h3><pre>{text_of(example.prompt, prose=True)}</pre>"
        cells = (
            f'<div><span class="soft {kind}">{name}</span><pre>{text_of(said, prose=True)}</pre></div>'
            for name, said, kind in boxes
        )
        yield f'<div class="answers">{"".join(cells)}</div>'


def _details(one: Told) -> Iterator[str]:
    yield "<h2>Where it ran, and with what</h2>"
    record = one.story.record
    if record is not None and record.starts:
        rows = [
            (when_text(start.started), f"{start.from_step:,}", start.how or NOTHING) for start in record.starts[-ROWS:]
        ]
        yield table(("started", "after steps", "ended"), rows, (1,))
    if one.environment:
        yield f"<details><summary>Environment</summary>{table((), one.environment)}</details>"
    if one.recipe:
        yield f"<details><summary>Recipe, every choice</summary>{table((), one.recipe)}</details>"
    if one.story.checkpoints:
        kept = [(file.name, size_text(file.bytes)) for file in one.story.checkpoints]
        yield f"<details><summary>Checkpoints</summary>{table((), kept, (1,))}</details>"
