"""The search: of all compositions that fit a card the one that takes least time, each looked at no closer than needed.

Every composition is first estimated by sums: what a plain one takes, and what each lever alone changes of that. The one
that seems fastest is looked at again, by short models of its own; the one that seems fastest then by a trace in full
depth, in which the smallest number of layers is found. What was looked at closely and still is the fastest is chosen.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from fitune.fit.estimate import Estimate, Line, Seen
from fitune.fit.fitted import Considered
from fitune.fit.levers import Picks, combinations
from fitune.fit.space import Rows, Space
from fitune.fit.tracing import Tracing
from fitune.forecast.forecast import Forecast
from fitune.recipe import Recipe

LENIENCE = 1.06
"""How far over the card's memory a sum may be for the composition to be looked at again: sums overestimate."""
ALIKE = 1.01
"""Times that differ by less are alike: of two such compositions the one of fewer levers is taken."""
CLOSE_LOOKS, TRACES = 12, 10
"""The most compositions that are looked at again, and the most traces in full depth."""
NEAREST = 3
"""Compositions that are looked at closely where none seems to fit."""
RUNNERS_UP = 5
"""Compositions that are told of beside what was looked at closely."""
STEPS = 4
"""Traces in full depth in which the number of layers of one composition is found."""


@dataclass(order=True)
class _Candidate:
    order: tuple[float, ...]
    seconds: float = field(compare=False)
    stage: int = field(compare=False)
    picks: Picks = field(compare=False)
    rows: Rows = field(compare=False)
    count: int = field(compare=False)
    estimate: Estimate | None = field(compare=False, default=None)
    found: tuple[Recipe, Forecast, Seen] | None = field(compare=False, default=None)


class NothingFits(Exception):
    """No composition fits."""


class Search:
    """One search."""

    def __init__(self, space: Space, tracing: Tracing) -> None:
        self.space, self.tracing = space, tracing
        self.considered: dict[str, Considered] = {}
        """By key: all that was looked at closely."""
        self._looks = self._traces = 0

    def run(self) -> tuple[Recipe, Forecast, Considered]:
        """The fastest. Raises `NothingFits`."""
        waiting = self._first_look()
        heapq.heapify(waiting)
        best: _Candidate | None = None
        while waiting:
            candidate = heapq.heappop(waiting)
            if candidate.found is not None:
                best = candidate
                break
            if candidate.stage == 0:
                closer = self._look(candidate)
            else:
                closer = self._confirm(candidate)
                if closer is not None and (best is None or closer < best):
                    best = closer
            if closer is not None:
                heapq.heappush(waiting, closer)
            if best is not None and (not waiting or best.seconds <= ALIKE * waiting[0].seconds):
                break  # or only something that is hardly faster could be found
            if self._traces >= TRACES or (self._looks >= CLOSE_LOOKS and best is not None):
                break
        if best is None or best.found is None:
            raise NothingFits
        self._note_runners_up(waiting)
        recipe, forecast, seen = best.found
        return recipe, forecast, self._note_seen(best.picks, best.rows, best.count, seen, fits=True, confirmed=True)

    # ---------------------------------------------------------------------------------------------------- by sums

    def _first_look(self) -> list[_Candidate]:
        """Every composition, by what its levers change alone."""
        space = self.space
        sums = Sums(space, self.tracing)
        candidates: list[_Candidate] = []
        beyond: list[_Candidate] = []
        for picks, rows in itertools.product(combinations(space.levers, set(space.named)), space.rows):
            estimate = sums.estimate(picks)
            if estimate is None:
                continue
            estimate = estimate.scaled(rows.micro_batch // space.rows[0].micro_batch)
            found = self._candidate(picks, rows, estimate, stage=0, limit=LENIENCE * space.limit(picks))
            candidates += found
            if not found:
                most = space.layers if estimate.worked else 0
                beyond.append(self._made(picks, rows, estimate, most, estimate.at(most), 0))
        beyond.sort(key=lambda one: one.estimate.at(one.count).reserved if one.estimate else 0.0)
        return candidates or beyond[:NEAREST]

    def _candidate(self, picks: Picks, rows: Rows, estimate: Estimate, *, stage: int, limit: float) -> list[_Candidate]:
        count = estimate.smallest(limit)
        if count is None:
            if stage:
                seen = estimate.at(self.space.layers if estimate.worked else 0)
                self._note_seen(picks, rows, self.space.layers, seen, fits=False, confirmed=False)
            return []
        seen = estimate.at(count)
        if stage:
            self._note_seen(picks, rows, count, seen, fits=True, confirmed=False)
        return [self._made(picks, rows, estimate, count, seen, stage)]

    def _made(self, picks: Picks, rows: Rows, estimate: Estimate, count: int, seen: Seen, stage: int) -> _Candidate:
        seconds = seen.seconds * self.space.handicap(picks)
        order = (math.floor(math.log(seconds, ALIKE)), sum(pick >= 0 for pick in picks), seconds, *picks)
        return _Candidate(order, seconds, stage, picks, rows, count, estimate)

    # ------------------------------------------------------------------------------------------------- by short models

    def _look(self, candidate: _Candidate) -> _Candidate | None:
        self._looks += 1
        estimate = look(self.space, self.tracing, candidate.picks, candidate.rows)
        if estimate is None:
            return None
        found = self._candidate(
            candidate.picks, candidate.rows, estimate, stage=1, limit=self.space.limit(candidate.picks)
        )
        return found[0] if found else None

    # --------------------------------------------------------------------------------------------------- in full depth

    def _confirm(self, candidate: _Candidate) -> _Candidate | None:
        """Find the smallest number of layers that fits, in full depth; None if none does."""
        space, estimate = self.space, candidate.estimate
        assert estimate is not None
        limit, count = space.limit(candidate.picks), candidate.count
        best: _Candidate | None = None
        misses: set[int] = set()
        for _ in range(STEPS):
            self._traces += 1
            found = self.tracing.whole(space.asked(candidate.picks, candidate.rows, count))
            if found is None:
                return best
            _, forecast, seen = found
            fits = forecast.passes and seen.reserved <= space.usable - forecast.margin
            if fits and (best is None or count < best.count):
                best = self._made(candidate.picks, candidate.rows, estimate, count, seen, 2)
                best.found = found
            if not fits:
                misses.add(count)
                self._note_seen(candidate.picks, candidate.rows, count, seen, fits=False, confirmed=True)
            correction = seen.reserved - estimate.at(count).reserved
            wanted = self._next(estimate, limit, correction, count, fits=fits)
            if wanted is None or wanted in misses or wanted == count or (best is not None and wanted >= best.count):
                break
            count = wanted
        return best

    def _next(self, estimate: Estimate, limit: float, correction: float, count: int, *, fits: bool) -> int | None:
        """The number of layers to try after this one."""
        if estimate.worked is None:
            return None
        wanted = estimate.smallest(limit, correction)
        if fits:
            return None if wanted is None or wanted >= count else wanted
        return min(max(wanted or estimate.layers, count + 1), estimate.layers) if count < estimate.layers else None

    # ------------------------------------------------------------------------------------------------------------ notes

    def _note_runners_up(self, waiting: Sequence[_Candidate]) -> None:
        """Tell of the next ones too, by sums where nobody has looked closer."""
        for other in heapq.nsmallest(RUNNERS_UP, waiting):
            if other.stage == 0 and other.estimate is not None:
                seen = other.estimate.at(other.count)
                self._note_seen(other.picks, other.rows, other.count, seen, fits=True, confirmed=False)

    def _note_seen(
        self, picks: Picks, rows: Rows, count: int, seen: Seen, *, fits: bool, confirmed: bool
    ) -> Considered:
        asked = self.space.asked(picks, rows, count)
        noted = Considered(
            tables=asked.tables,
            micro_batch=rows.micro_batch,
            accumulation=rows.accumulation,
            seconds=seen.seconds,
            allocated=math.ceil(seen.allocated),
            reserved=math.ceil(seen.reserved),
            margin=int(self.space.usable - self.space.limit(picks)),
            fits=fits,
            confirmed=confirmed,
        )
        key = f"{picks} {rows.micro_batch}"
        before = self.considered.get(key)
        if before is None or confirmed or not before.confirmed:
            self.considered[key] = noted
        return noted


class Sums:
    """Estimates by what each lever alone changes of a composition with nothing but the free ones."""

    def __init__(self, space: Space, tracing: Tracing) -> None:
        self.space, self.tracing = space, tracing
        self.base: Picks = tuple(0 if lever.fit.free else -1 for lever in space.levers)
        self._lines: dict[Picks, Line | None] = {}

    def estimate(self, picks: Picks) -> Estimate | None:
        """Of a composition; None where one of its levers cannot be had."""
        space = self.space
        counted = space.counted
        plain = self._sum(space.unworked(picks), self.base)
        if plain is None:
            return None
        if counted is None or picks[counted] < 0:
            return Estimate(layers=space.layers, plain=plain)
        worked = self._sum(picks, _with(self.base, counted, 0))
        return None if worked is None else Estimate(layers=space.layers, plain=plain, worked=worked)

    def _sum(self, picks: Picks, base: Picks) -> Line | None:
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

    def _line(self, picks: Picks) -> Line | None:
        if picks not in self._lines:
            self._lines[picks] = line(self.space, self.tracing, picks, self.space.rows[0])
        return self._lines[picks]


def look(space: Space, tracing: Tracing, picks: Picks, rows: Rows) -> Estimate | None:
    """The estimate of a composition by short models of its own."""
    plain = line(space, tracing, space.unworked(picks), rows)
    if plain is None or space.counted is None or picks[space.counted] < 0:
        return None if plain is None else Estimate(layers=space.layers, plain=plain)
    worked = line(space, tracing, picks, rows)
    return None if worked is None else Estimate(layers=space.layers, plain=plain, worked=worked)


def line(space: Space, tracing: Tracing, picks: Picks, rows: Rows) -> Line | None:
    """Of a composition, its counted lever in all layers."""
    asked = space.asked(picks, rows, None)
    seen = [tracing.short(asked, layers) for layers in space.depths]
    found = [one for one in seen if one is not None]
    if len(found) < len(seen):
        return None
    return (
        Line.flat(found[0]) if len(found) == 1 else Line.through(found[0], found[1], (space.depths[0], space.depths[1]))
    )


def _with(picks: Picks, at: int, pick: int) -> Picks:
    return (*picks[:at], pick, *picks[at + 1 :])
