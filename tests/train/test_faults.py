"""A run that is killed again and again, at random moments, ends as one that nothing disturbs (see `fault_suite`)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.fault_suite import AIMED, Suite
from support.forked import Forks

KILLS = int(os.environ.get("FT_FAULTS", "200"))
SEED = int(os.environ.get("FT_SEED", "20261124"))
PARTS = max(1, min(8, KILLS // 25))
"""Each is a suite of its own, which another worker may run."""
SHARES = {SEED + part: KILLS * (part + 1) // PARTS - KILLS * part // PARTS for part in range(PARTS)}
"""By seed: how many kills."""


@pytest.mark.parametrize(("seed", "kills"), SHARES.items())
def test_killed_again_and_again(seed: int, kills: int, forks: Forks, tmp_path: Path) -> None:
    figures = Suite(forks, tmp_path, kills=kills, seed=seed).run(print)
    print(figures.values())
    assert figures.kills >= kills
    assert figures.chains >= kills // 30  # most starts make progress
    assert set(AIMED) <= set(figures.phases)


def test_the_parts_give_all_kills() -> None:
    assert sum(SHARES.values()) == KILLS
