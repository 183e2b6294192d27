"""The losses of the tiny recipe and the order of its rows, pinned: a change of either is a change for every user."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from support.paths import TESTS
from support.tiny import losses, metrics, parts_of, train

GOLDEN = TESTS / "golden" / "tiny_loss.json"
STRATEGIES = ["", '{use="chunked-loss", tokens=3}', '{use="gradient-checkpointing"}']


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_golden_losses(recipe_path: Path, tmp_path: Path, strategy: str) -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    train(recipe_path, tmp_path / "run", *golden["overrides"], f"memory.strategy=[{strategy}]")
    assert losses(tmp_path / "run") == pytest.approx(golden["losses"], rel=2e-5)


@pytest.mark.parametrize("seed", [42, 7])
def test_the_order_of_rows(recipe_path: Path, tmp_path: Path, seed: int) -> None:
    """It depends on seed and epoch alone, and every row comes once an epoch."""
    with (recipe_path.parent / "data.jsonl").open("w", encoding="utf-8") as out:
        for row in range(6):
            turns = [{"role": "user", "content": "?" * row}, {"role": "assistant", "content": "!"}]
            out.write(json.dumps({"messages": turns}) + "\n")
    changes = (f"seed={seed}", "train.steps=12", "train.micro_batch=1", "adapter.dropout=0.1")
    train(recipe_path, tmp_path / "run", *changes)
    lengths = [len(example.input_ids) for example in parts_of(recipe_path).examples]
    assert len(set(lengths)) == 6
    order = [int(row) for epoch in (0, 1) for row in np.random.default_rng((seed, epoch)).permutation(6)]
    assert [line["tokens"] for line in metrics(tmp_path / "run")] == [lengths[row] for row in order]
    assert order[:6] != order[6:]
