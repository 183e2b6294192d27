"""What short models say of a composition: by what each choice alone changes, or by short models of its own."""

from __future__ import annotations

from fitune.memory.fit.choices import Picks
from fitune.memory.fit.estimate import Affine, Estimate
from fitune.memory.fit.space import MicroBatches, Space
from fitune.memory.fit.tracing import Tracing


class Sums:
    """Estimates by what each choice alone changes of a composition with nothing but the free ones."""

    def __init__(self, space: Space, tracing: Tracing) -> None:
        self.space, self.tracing = space, tracing
        self.base: Picks = tuple(0 if choice.fit.free else -1 for choice in space.choices)
        self._lines: dict[Picks, Affine | None] = {}
        self._idle: dict[tuple[int, int], bool] = {}

    def idle(self, picks: Picks) -> bool:
        """Whether one of its settings does just what another before it does, or leaving it out: to the byte, to the
        operation.
        """
        return any(self._changes_nothing(at, pick) for at, pick in enumerate(picks) if pick >= 0)

    def estimate(self, picks: Picks) -> Estimate | None:
        """Of a composition; None where one of its choices cannot be had."""
        space = self.space
        counted = space.counted
        plain = self._sum(space.unworked(picks), self.base)
        if plain is None:
            return None
        if counted is None or picks[counted] < 0:
            return Estimate(layers=space.layers, plain=plain)
        worked = self._sum(picks, _with(self.base, counted, 0))
        return None if worked is None else Estimate(layers=space.layers, plain=plain, worked=worked)

    def _changes_nothing(self, at: int, pick: int) -> bool:
        if (at, pick) not in self._idle:
            choice, counted = self.space.choices[at], self.space.counted
            bases = [] if counted is None or counted == at else [_with(self.base, counted, 0)]
            if not bases or choice.fit.needs != self.space.choices[counted or 0].name:
                bases.append(self.base)
            least = 0 if choice.fit.free or counted == at else -1
            self._idle[at, pick] = any(
                all(self._line(_with(base, at, other)) == self._line(_with(base, at, pick)) for base in bases)
                for other in range(least, pick)
            )
        return self._idle[at, pick]

    def _sum(self, picks: Picks, base: Picks) -> Affine | None:
        start = total = self._line(base)
        if start is None or total is None:
            return None
        for at, pick in enumerate(picks):
            if pick != base[at]:
                alone = self._line(_with(base, at, pick))
                if alone is None:
                    return None
                total = total.plus(alone).plus(start, -1.0)
        return total

    def _line(self, picks: Picks) -> Affine | None:
        if picks not in self._lines:
            self._lines[picks] = line(self.space, self.tracing, picks, self.space.rows[0])
        return self._lines[picks]


def look(space: Space, tracing: Tracing, picks: Picks, rows: MicroBatches) -> Estimate | None:
    """The estimate of a composition by short models of its own."""
    plain = line(space, tracing, space.unworked(picks), rows)
    if plain is None or space.counted is None or picks[space.counted] < 0:
        return None if plain is None else Estimate(layers=space.layers, plain=plain)
    worked = line(space, tracing, picks, rows)
    return None if worked is None else Estimate(layers=space.layers, plain=plain, worked=worked)


def line(space: Space, tracing: Tracing, picks: Picks, rows: MicroBatches) -> Affine | None:
    """Of a composition, its counted choice in all layers."""
    trial = space.trial(picks, rows, None)
    seen = [tracing.short(trial, layers) for layers in space.depths]
    found = [one for one in seen if one is not None]
    if len(found) < len(seen):
        return None
    return (
        Affine.flat(found[0])
        if len(found) == 1
        else Affine.through(found[0], found[1], (space.depths[0], space.depths[1]))
    )


def _with(picks: Picks, at: int, pick: int) -> Picks:
    return (*picks[:at], pick, *picks[at + 1 :])
