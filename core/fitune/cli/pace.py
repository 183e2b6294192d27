"""How fast a run goes on, and how long it still takes: what its line on a terminal, or in a log, says."""

from __future__ import annotations

import time
from collections.abc import Callable

WIDTH = 60
"""Characters of a step's line behind its number: with that, it fits a terminal of 80 columns."""


class Pace:
    """How long a run still takes: by what its steps took since the first, evaluations and saves between them."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._first: tuple[int, float] | None = None
        self._last: tuple[int, float] = (0, 0.0)

    def done(self, step: int) -> None:
        """Note that a step is made; one that goes back, after a shortage of memory, begins anew."""
        now = (step, self._clock())
        if self._first is None or step <= self._last[0]:
            self._first = now
        self._last = now

    def left(self, steps: int) -> str | None:
        """What is left of so many steps, as h:mm:ss; None before the second step, and after the last."""
        if self._first is None or self._last[0] == self._first[0] or self._last[0] >= steps:
            return None
        (before, began), (step, now) = self._first, self._last
        seconds = round((now - began) / (step - before) * (steps - step))
        return f"{seconds // 3600}:{seconds % 3600 // 60:02}:{seconds % 60:02}"


def in_a_line(*parts: str, spare: str, end: str) -> str:
    """The parts that say something, one behind the other; `spare` behind them where there is room for it; `end`."""
    kept = [part for part in parts if part]
    behind = [end] if end else []
    middle = [spare] if len("  ".join([*kept, spare, *behind])) <= WIDTH else []
    return "  ".join([*kept, *middle, *behind])
