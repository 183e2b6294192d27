"""Numbers by steps, thinned out for a drawing in which nothing is lost that an eye could see.

As many steps as there are buckets stand as they are. Of more, each bucket keeps its smallest, its largest and its mean:
a spike of one step in a hundred thousand is in the drawing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

BUCKETS = 300


@dataclass(frozen=True, slots=True)
class Point:
    """What a bucket holds: of its middle step, the least, the mean and the most."""

    step: float
    low: float
    mean: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line of a drawing."""

    name: str
    points: tuple[Point, ...]
    steps: int
    """How many numbers it was made of."""
    every: float
    """Steps that a point stands for; 1 where all are shown."""

    @property
    def thinned(self) -> bool:
        """Whether points stand for several numbers."""
        return self.every > 1


def series(name: str, values: Sequence[tuple[int, float]], buckets: int = BUCKETS) -> Series:
    """A series of (step, number), in the order of their steps, in at most so many points."""
    if len(values) <= buckets:
        points = tuple(Point(step, value, value, value) for step, value in values)
        return Series(name=name, points=points, steps=len(values), every=1)
    first, last = values[0][0], values[-1][0]
    width = (last - first + 1) / buckets
    held: list[list[tuple[int, float]]] = [[] for _ in range(buckets)]
    for step, value in values:
        held[min(buckets - 1, int((step - first) / width))].append((step, value))
    return Series(
        name=name, points=tuple(_point(one) for one in held if one), steps=len(values), every=len(values) / buckets
    )


def _point(held: Sequence[tuple[int, float]]) -> Point:
    numbers = [value for _, value in held]
    return Point((held[0][0] + held[-1][0]) / 2, min(numbers), sum(numbers) / len(numbers), max(numbers))
