"""A run that is killed again and again, at random moments, ends as one that nothing disturbs (see `fault_suite`)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.fault_suite import AIMED, Suite
from support.forked import Forks

KILLS = int(os.environ.get("FT_FAULTS", "60"))
OF_TWO = max(20, KILLS // 10)
"""Kills of one of two processes that train together, each of which takes as long as four of one alone."""
OF_SHARDS = max(4, KILLS // 30)
SEED = int(os.environ.get("FT_SEED", "20261124"))


def shares(kills: int, seed: int, largest: int) -> dict[int, int]:
    """Suites that together give so many kills, each of which another worker may run, by their seeds."""
    parts = max(1, min(8, kills // largest))
    return {seed + part: kills * (part + 1) // parts - kills * part // parts for part in range(parts)}


@pytest.mark.parametrize(("seed", "kills"), shares(KILLS, SEED, 30).items())
def test_killed_again_and_again(seed: int, kills: int, forks: Forks, tmp_path: Path) -> None:
    figures = Suite(forks, tmp_path, kills=kills, seed=seed).run(print)
    print(figures.values())
    assert figures.kills >= kills
    assert figures.chains >= kills // 30  # most starts make progress
    assert set(AIMED) <= set(figures.phases)


@pytest.mark.parametrize(("seed", "kills"), shares(OF_TWO, SEED, 50).items())
def test_one_of_two_processes_killed_again_and_again(seed: int, kills: int, forks: Forks, tmp_path: Path) -> None:
    figures = Suite(forks, tmp_path, kills=kills, seed=seed, processes=2).run(print)
    print(figures.values())
    assert figures.kills >= kills
    assert set(figures.ranks) == {0, 1}


def test_one_of_two_processes_of_a_sharded_run_killed(forks: Forks, tmp_path: Path) -> None:
    """Few, for each takes as long as six of one process; `benchmarks/faults.py --sharded` has more."""
    figures = Suite(forks, tmp_path, kills=OF_SHARDS, seed=SEED, processes=2, sharded=True).run(print)
    print(figures.values())
    assert figures.kills >= OF_SHARDS


@pytest.mark.parametrize(("kills", "largest"), [(60, 30), (20, 50), (2000, 30), (1, 30)])
def test_the_parts_give_all_kills(kills: int, largest: int) -> None:
    assert sum(shares(kills, SEED, largest).values()) == kills
