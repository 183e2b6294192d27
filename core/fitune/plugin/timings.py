"""How long a run takes to its first step, by phases, one behind the other: `ft run` from the start of its process.

What is told is written into the run's record (`run.json`, each start's `phases`), and printed by `ft run --timings`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

FIRST_STEP = "first step"
"""The last phase: what comes behind it is not timed here."""

_IMPORTED = time.monotonic()


def process_begun() -> float:
    """When this process began, by `time.monotonic`; where the system does not tell (Linux does), when this module was
    imported, which the command line does first of all.
    """
    try:
        text = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace")
        ticks = int(text.rpartition(")")[2].split()[19])  # behind the name, which may hold anything: field 22
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return _IMPORTED
    return time.monotonic() - age


@dataclass(slots=True, kw_only=True)
class Timings:
    """Seconds of each phase that is done, in their order."""

    say: Callable[[str, float], None] | None = None
    """Told of each phase as it is done, with its seconds."""
    begun: float = field(default_factory=time.monotonic)
    clock: Callable[[], float] = time.monotonic
    phases: dict[str, float] = field(default_factory=dict)
    _since: float | None = None

    def done(self, phase: str) -> None:
        """What was done since the phase before, or since the beginning, is this phase; it may be done in parts.

        Nothing is noted behind the first step.
        """
        if FIRST_STEP in self.phases:
            return
        now = self.clock()
        seconds = now - (self.begun if self._since is None else self._since)
        self._since = now
        self.phases[phase] = self.phases.get(phase, 0.0) + seconds
        if self.say is not None:
            self.say(phase, seconds)

    @property
    def total(self) -> float:
        """Seconds of all that are done."""
        return sum(self.phases.values())
