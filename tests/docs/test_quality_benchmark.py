"""What benchmarks/quality.py and fp8_quality.py share: the recipe of their runs, and what counts of one."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from fitune.plugin.registry import Registry
from fitune.recipe.reader import read_recipe
from support.gguf_models import bytewise, write
from support.paths import ROOT


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("quality_runs")


def test_a_run_has_the_named_strategies_alone(runs: Any, tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    write(tmp_path / "model", "llama", bytewise("smollm"))
    row = {"question": "What is 1 and 1?", "answer": "<<1+1=2>>2"}
    (tmp_path / "sums.jsonl").write_text(f"{json.dumps(row)}\n" * (runs.HELD_OUT + 2), encoding="utf-8")
    assert runs.write_data(tmp_path, tmp_path / "sums.jsonl") == 2
    written = runs.recipe('use = "hf"\npath = "model"', ["chunked-loss"], seed=2, steps=9, rows=4)
    file.write_text(written, encoding="utf-8")
    recipe = read_recipe(file, Registry.open(third_party=False))
    assert [use.record.name for use in recipe.strategies] == ["chunked-loss"]
    assert not recipe.memory.fast  # or a plain run would not be plain on a GPU
    assert (recipe.general.seed, recipe.train.steps, recipe.train.micro_batch, recipe.evaluation.every) == (2, 9, 4, 4)


def test_a_run_counts_when_its_last_evaluation_is_written(runs: Any, tmp_path: Path) -> None:
    lines = [
        {"event": "step", "step": 1, "loss": 3.0},
        {"event": "evaluation", "step": 1, "loss": 2.5},
        {"event": "step", "step": 2, "loss": 9.0},
        {"event": "step", "step": 2, "loss": 2.0},
        {"event": "evaluation", "step": 2, "loss": 1.5},
    ]
    whole = "".join(f"{json.dumps(line)}\n" for line in lines)
    metrics = tmp_path / "metrics.jsonl"
    assert runs.losses_of(tmp_path, 2) is None
    metrics.write_text(whole[:-4], encoding="utf-8")  # it was killed as it wrote
    assert runs.losses_of(tmp_path, 2) is None
    metrics.write_text(whole, encoding="utf-8")
    assert runs.losses_of(tmp_path, 2) == {"held_out": {"1": 2.5, "2": 1.5}, "losses": [3.0, 2.0]}
