"""The search: of all compositions that fit a card the one that takes least time, each looked at no closer than needed.

Every composition is first estimated by sums: what a plain one takes, and what each choice alone changes of that. The
one that seems fastest is looked at again, by short models of its own, and what its sum was wrong by corrects the sums
of those that are like it; the one that seems fastest then is looked at by a trace in full depth, in which the smallest
number of layers is found. What was looked at closely and still is the fastest is chosen.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from fitune.memory.fit.additive import Sums, look
from fitune.memory.fit.choices import Picks, combinations
from fitune.memory.fit.estimate import Estimate, Seen
from fitune.memory.fit.result import Considered
from fitune.memory.fit.space import MicroBatches, Space
from fitune.memory.fit.tracing import Tracing
from fitune.memory.forecast import Forecast
from fitune.plugin.recipe import Recipe

LENIENCE = 1.06
"""How far over the card's memory a sum may be for the composition to be looked at again: sums overestimate."""

CORRECTED = 1.02
"""The same of a corrected sum, for each choice in which it differs from what corrects it; no more than the above."""

ALIKE = 1.01
"""Times that differ by less are alike: of two such compositions the one of fewer strategies is taken."""

CLOSE_LOOKS, TRACES = 12, 10
"""The most compositions that are looked at again, and the most traces in full depth."""

NEAREST = 3
"""Compositions that are looked at closely where none seems to fit."""

LEAST = 1e-9
"""Seconds: a sum of differences may come to less than nothing."""

RUNNERS_UP = 5
"""Compositions that are told of beside what was looked at closely."""

ROOM = 0.05
"""Share of the memory that is left free where a number of layers, found by its estimate, is far from the smallest."""

STEPS = 4
"""Traces in full depth in which the number of layers of one composition is found."""


@dataclass(order=True)
class _Candidate:
    order: tuple[float, ...]
    seconds: float = field(compare=False)
    stage: int = field(compare=False)
    picks: Picks = field(compare=False)
    rows: MicroBatches = field(compare=False)
    count: int = field(compare=False)
    estimate: Estimate = field(compare=False)
    found: tuple[Recipe, Forecast, Seen] | None = field(compare=False, default=None)
    distance: float = field(compare=False, default=math.inf)
    """Choices in which it differs from the composition whose look has corrected its sum."""


@dataclass(frozen=True, slots=True)
class _Lesson:
    """What the sum of a composition was wrong by."""

    picks: Picks
    rows: MicroBatches
    error: Estimate

    def distance(self, other: _Candidate) -> float:
        """In how many choices another differs; no end where only one has worked layers, or rows are cut otherwise."""
        alike = self.rows == other.rows and (self.error.worked is None) == (other.estimate.worked is None)
        return sum(a != b for a, b in zip(self.picks, other.picks, strict=True)) if alike else math.inf


class NothingFits(Exception):
    """No composition fits."""


class Search:
    """One search."""

    def __init__(self, space: Space, tracing: Tracing) -> None:
        self.space, self.tracing = space, tracing
        self.considered: dict[str, Considered] = {}
        """By key: what was looked at closely, and runners-up."""
        self.looked: dict[Picks, Estimate] = {}
        """What short models say of those, at the fewest rows."""
        self._sums = Sums(space, tracing)
        self._lessons: list[_Lesson] = []
        self._doubtful: list[_Candidate] = []
        """What fits by its sum alone, but not by that and what was learnt."""
        self._looks = self._traces = 0

    def run(self) -> tuple[Recipe, Forecast, Considered]:
        """The fastest. Raises `NothingFits`."""
        waiting = self._first_look()
        heapq.heapify(waiting)
        best: _Candidate | None = None
        while waiting or (best is None and self._in_doubt(waiting)):
            candidate = heapq.heappop(waiting)
            if candidate.found is not None:
                best = candidate
                break
            if candidate.stage == 0:
                closer = self._know_better(candidate)
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
        """Every composition, by what its choices change alone."""
        space = self.space
        candidates: list[_Candidate] = []
        beyond: list[_Candidate] = []
        for picks, rows in itertools.product(combinations(space.choices, set(space.named)), space.rows):
            estimate = None if self._sums.idle(picks) else self._sum(picks, rows)
            if estimate is None:
                continue
            found = self._candidate(picks, rows, estimate, stage=0, limit=LENIENCE * space.limit(picks))
            candidates += found
            if not found:
                most = space.layers if estimate.worked else 0
                beyond.append(self._made(picks, rows, estimate, most, estimate.at(most), 0))
        beyond.sort(key=_reserved)
        return candidates or beyond[:NEAREST]

    def _sum(self, picks: Picks, rows: MicroBatches) -> Estimate | None:
        estimate = self._sums.estimate(picks)
        return None if estimate is None else estimate.scaled(rows.micro_batch // self.space.rows[0].micro_batch)

    def _candidate(
        self, picks: Picks, rows: MicroBatches, estimate: Estimate, *, stage: int, limit: float
    ) -> list[_Candidate]:
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

    def _made(
        self, picks: Picks, rows: MicroBatches, estimate: Estimate, count: int, seen: Seen, stage: int
    ) -> _Candidate:
        seconds = max(seen.seconds, LEAST) * self.space.handicap(picks)
        order = (math.floor(math.log(seconds, ALIKE)), sum(pick >= 0 for pick in picks), seconds, *picks)
        return _Candidate(order, seconds, stage, picks, rows, count, estimate)

    # ------------------------------------------------------------------------------------------------- by short models

    def _know_better(self, candidate: _Candidate) -> _Candidate | None:
        """Correct a sum by what that of the nearest composition was wrong by; where that is done, look closer."""
        lesson = min(self._lessons, key=lambda one: one.distance(candidate), default=None)
        estimate = self._sum(candidate.picks, candidate.rows)
        if lesson is None or estimate is None or lesson.distance(candidate) >= candidate.distance:
            return self._look(candidate)
        picks, rows = candidate.picks, candidate.rows
        limit = min(LENIENCE, CORRECTED ** lesson.distance(candidate)) * self.space.limit(picks)
        found = self._candidate(picks, rows, estimate.plus(lesson.error), stage=0, limit=limit)
        if not found:
            self._doubtful.append(candidate)
            return None
        found[0].distance = lesson.distance(candidate)
        return found[0]

    def _look(self, candidate: _Candidate) -> _Candidate | None:
        self._looks += 1
        picks, rows = candidate.picks, candidate.rows
        estimate, expected = look(self.space, self.tracing, picks, rows), self._sum(picks, rows)
        if estimate is None or expected is None:
            return None
        if rows == self.space.rows[0]:
            self.looked[picks] = estimate
        self._lessons.append(_Lesson(picks, rows, estimate.plus(expected, -1.0)))
        found = self._candidate(picks, rows, estimate, stage=1, limit=self.space.limit(picks))
        return found[0] if found else None

    def _in_doubt(self, waiting: list[_Candidate]) -> bool:
        """Nothing has been found: have what takes least looked at after all."""
        number = max(NEAREST, CLOSE_LOOKS - self._looks)
        for candidate in heapq.nsmallest(number, self._doubtful, key=_reserved):
            candidate.distance = -math.inf
            heapq.heappush(waiting, candidate)
        self._doubtful.clear()
        return bool(waiting)

    # --------------------------------------------------------------------------------------------------- in full depth

    def _confirm(self, candidate: _Candidate) -> _Candidate | None:
        """Find the smallest number of layers that fits, in full depth; None if none does."""
        space, estimate = self.space, candidate.estimate
        limit, count = space.limit(candidate.picks), candidate.count
        best: _Candidate | None = None
        misses: set[int] = set()
        for _ in range(STEPS):
            self._traces += 1
            found = self.tracing.whole(space.trial(candidate.picks, candidate.rows, count))
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
            if fits and wanted is None and estimate.worked is not None and limit - seen.reserved > ROOM * limit:
                wanted = (max(misses, default=0) + count) // 2 or None  # the estimate tells nothing: halve
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
            if other.stage == 0:
                seen = other.estimate.at(other.count)
                self._note_seen(other.picks, other.rows, other.count, seen, fits=True, confirmed=False)

    def _note_seen(
        self, picks: Picks, rows: MicroBatches, count: int, seen: Seen, *, fits: bool, confirmed: bool
    ) -> Considered:
        trial = self.space.trial(picks, rows, count)
        noted = Considered(
            tables=trial.tables,
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


def _reserved(candidate: _Candidate) -> float:
    return candidate.estimate.at(candidate.count).reserved
