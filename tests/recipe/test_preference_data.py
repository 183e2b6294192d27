"""The pairs of recipes/smollm2_dpo.toml are what its script makes, and are as it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.paths import ROOT

DATA = ROOT / "recipes" / "smollm2_dpo"


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def test_the_script_makes_them(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(DATA / "make_pairs.py"), "--out", str(tmp_path)], check=True)
    for name in ("train.jsonl", "held_out.jsonl"):
        assert (tmp_path / name).read_bytes() == (DATA / name).read_bytes()


@pytest.mark.parametrize("name", ["train.jsonl", "held_out.jsonl"])
def test_neither_way_of_writing_is_the_better_one(name: str) -> None:
    """So that a model which likes one of them is right in half of the pairs."""
    american = [row["chosen"][0]["content"].endswith("M.") for row in rows(name)]
    assert 2 * sum(american) == len(american)
    assert [row["rejected"][0]["content"].endswith("M.") for row in rows(name)] == [not other for other in american]


def test_no_held_out_question_is_trained_on() -> None:
    asked = [
        {row["prompt"][1]["content"].partition(". ")[2] for row in rows(name)}
        for name in ("train.jsonl", "held_out.jsonl")
    ]
    assert not asked[0] & asked[1]


def test_what_was_measured_is_what_the_recipe_is_for() -> None:
    """Held-out pairs by chance before, and nearly all of them after."""
    found = json.loads((ROOT / "benchmarks" / "preference_quickstart.json").read_text(encoding="utf-8"))["seeds"]
    assert found
    for entry in found:
        assert entry["reward"]["before"] == 0.5
        assert 0.35 <= entry["likelier"]["before"] <= 0.65
        assert min(entry["reward"]["after"], entry["likelier"]["after"]) >= 0.9
