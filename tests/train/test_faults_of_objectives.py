"""Runs of preferences that are killed again and again end as ones that nothing disturbs (see `fault_suite`).

Few kills of each, for the steps between are those of any run; more on demand:

    FT_OBJECTIVE_FAULTS=100 pytest tests/train/test_faults_of_objectives.py
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from support.fault_suite import Suite
from support.forked import Forks

KILLS = int(os.environ.get("FT_OBJECTIVE_FAULTS", "3"))
SEED = 20261127
KILLED: dict[str, Mapping[str, object]] = {
    "dpo": {"use": "dpo"},
    "dpo, prepared": {"use": "dpo", "reference": "prepared"},
    "kto": {"use": "kto"},
    "reward": {"use": "reward"},
}


@pytest.mark.parametrize("name", KILLED)
def test_killed_again_and_again(name: str, forks: Forks, tmp_path: Path) -> None:
    figures = Suite(forks, tmp_path, kills=KILLS, seed=SEED + [*KILLED].index(name), objective=KILLED[name]).run(print)
    print(figures.values())
    assert figures.kills >= KILLS
    assert figures.chains
