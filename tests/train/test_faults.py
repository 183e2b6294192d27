"""A run that is killed again and again, at random moments, ends as one that nothing disturbs (see `fault_suite`)."""

from __future__ import annotations

import os
from pathlib import Path

from support.fault_suite import Suite
from support.forked import Forks

KILLS = int(os.environ.get("FT_FAULTS", "200"))
SEED = int(os.environ.get("FT_SEED", "20261124"))


def test_killed_again_and_again(forks: Forks, tmp_path: Path) -> None:
    figures = Suite(forks, tmp_path, kills=KILLS, seed=SEED).run(print)
    print(figures.values())
    assert figures.kills >= KILLS
    assert figures.chains >= KILLS // 30  # most starts make progress
    assert {"step", "checkpoint", "cleaning"} <= set(figures.phases)
