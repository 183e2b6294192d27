"""A drawing of series by steps, as SVG within a page: axes, lines, what they spread over, marks, levels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fitune.runs.report.series import Series
from fitune.runs.report.text import text_of

WIDTH, HEIGHT = 640, 240
LEFT, RIGHT, TOP, BOTTOM = 66, 26, 12, 42

COLOURS = 6
"""Classes `c0` and so on of the page's style."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """Points that stand for themselves, such as evaluations: (step, number)."""

    name: str
    points: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A number that is the same at all steps, such as a forecast."""

    name: str
    value: float


class _Scale:
    """Where steps and numbers lie in the drawing."""

    def __init__(self, steps: Sequence[float], values: Sequence[float], zero: bool) -> None:
        self.first, self.last = min(steps), max(steps)
        low, high = min(values), max(values)
        low = min(low, 0.0) if zero else low
        room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
        self.low, self.high = (low if zero and low == 0 else low - room), high + room

    def x(self, step: float) -> float:
        """From the left, in the drawing's units."""
        share = (step - self.first) / (self.last - self.first) if self.last > self.first else 0.5
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """From the top."""
        share = (value - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def chart(
    title: str,
    lines: Sequence[Series],
    marks: Sequence[Marks] = (),
    levels: Sequence[Level] = (),
    *,
    zero: bool = False,
) -> str:
    """A figure with its heading and its legend; empty where there is nothing to draw. With `zero`, numbers begin
    there.
    """
    steps = [point.step for one in lines for point in one.points] + [step for one in marks for step, _ in one.points]
    values = [value for one in lines for point in one.points for value in (point.low, point.high)]
    values += [value for one in marks for _, value in one.points] + [one.value for one in levels]
    if not steps:
        return ""
    scale = _Scale(steps, values, zero)
    drawn = "".join((*_axes(scale), *_levels(scale, levels), *_lines(scale, lines), *_marks(scale, marks, len(lines))))
    said = text_of(title)
    return (
        f"<figure><figcaption>{said}</figcaption>{_legend(lines, marks, levels)}"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}">{drawn}</svg></figure>'
    )


def _axes(scale: _Scale) -> Iterator[str]:
    values = ticks(scale.low, scale.high, 5)
    for value, said in zip(values, beside(values), strict=True):
        y = scale.y(value)
        yield f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
        yield f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{said}</text>'
    steps = [step for step in ticks(scale.first, scale.last, 6) if step == int(step)]
    for step, said in zip(steps, beside(steps), strict=True):
        yield f'<text x="{scale.x(step):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{said}</text>'
    yield f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end">steps</text>'


def _lines(scale: _Scale, lines: Sequence[Series]) -> Iterator[str]:
    for at, one in enumerate(lines):
        if not one.points:
            continue
        if one.thinned:
            over = [f"{scale.x(p.step):.1f} {scale.y(p.high):.1f}" for p in one.points]
            under = [f"{scale.x(p.step):.1f} {scale.y(p.low):.1f}" for p in reversed(one.points)]
            yield f'<path class="band c{at % COLOURS}" d="M{"L".join((*over, *under))}Z"/>'
        means = "L".join(f"{scale.x(p.step):.1f} {scale.y(p.mean):.1f}" for p in one.points)
        alone = f"h.01M{means}" if len(one.points) == 1 else ""
        yield f'<path class="line c{at % COLOURS}" d="M{means}{alone}"/>'


def _marks(scale: _Scale, marks: Sequence[Marks], before: int) -> Iterator[str]:
    for at, one in enumerate(marks, before):
        for step, value in one.points:
            said = text_of(f"{one.name} after {step:,} steps: {short(value)}")
            place = f'cx="{scale.x(step):.1f}" cy="{scale.y(value):.1f}"'
            yield f'<circle class="mark c{at % COLOURS}" {place} r="4"><title>{said}</title></circle>'


def _levels(scale: _Scale, levels: Sequence[Level]) -> Iterator[str]:
    for one in levels:
        yield f'<path class="level" d="M{LEFT} {scale.y(one.value):.1f}H{WIDTH - RIGHT}"/>'


def _legend(lines: Sequence[Series], marks: Sequence[Marks], levels: Sequence[Level]) -> str:
    found = [(f"key c{at % COLOURS}", _said(one)) for at, one in enumerate(lines) if one.points]
    found += [(f"key dot c{at % COLOURS}", one.name) for at, one in enumerate(marks, len(lines)) if one.points]
    found += [("key level", f"{one.name}: {short(one.value)}") for one in levels]
    parts = (f'<span><i class="{kind}"></i>{text_of(said)}</span>' for kind, said in found)
    return f'<p class="legend">{"".join(parts)}</p>'


def _said(one: Series) -> str:
    if not one.thinned:
        return one.name
    return f"{one.name} (mean, least and most of each {one.every:,.0f} of {one.steps:,} steps)"


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers between two, at most so many."""
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low]
    rough = span / most
    power = 10.0 ** math.floor(math.log10(rough))
    width = next(power * by for by in (1, 2, 5, 10) if power * by >= rough)
    first = math.ceil(low / width)
    return [at * width for at in range(first, math.floor(high / width) + 1)]


def beside(values: Sequence[float]) -> list[str]:
    """The numbers beside an axis, all in one unit: 5k, 10k, 15k; 500, 1000, 1500; 1.5e-4."""
    most = max(map(abs, values), default=0)
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if most >= 10 * size or (most >= size and all(value % size == 0 for value in values)):
            return [f"{value / size:,.4g}{letter}" if value else "0" for value in values]
    return [_small(value) for value in values]


def _small(value: float) -> str:
    if 0 < abs(value) < 0.01:
        digits, _, power = f"{value:.2e}".partition("e")
        return f"{float(digits):g}e{int(power)}"
    return f"{value:.4g}"


def short(value: float) -> str:
    """A number in few characters."""
    if value == 0:
        return "0"
    if abs(value) >= 1e15 or abs(value) < 1e-3:
        return f"{value:.3g}"
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:,.4g}" if abs(value) < 10000 else f"{value:,.0f}"
