"""Preference tuning on a GPU: with the fast kernels and recorded graphs it learns what it learns without; its memory is
what was forecast.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.tiny import metrics, train

pytestmark = pytest.mark.gpu

PLAIN = ""
FAST = '{use="fast-layers"}, {use="chunked-loss"}, {use="fused-rms-norm"}'


REWARD = '{use="reward"}'


@pytest.fixture
def recipe(recipe_path: Path) -> Path:
    """The tiny recipe with pairs of several lengths."""
    rows = [
        {"prompt": "ab" * (n % 3 + 1), "chosen": "yes " * (1 + n % 4), "rejected": "no " * (1 + n % 3)}
        for n in range(16)
    ]
    (recipe_path.parent / "data.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return recipe_path


def losses(recipe: Path, directory: Path, strategies: str, reference: str = "") -> list[float]:
    """Of DPO with this reference, or of a reward model."""
    asked = ("train.length=128", "train.steps=12", "train.learning_rate=5e-3", 'model.dtype="bfloat16"')
    dpo = f'{{use="dpo", beta=0.5, reference="{reference}"}}'
    objective = f"objective={dpo if reference else REWARD}"
    train(recipe, directory, *asked, objective, f"memory.strategy=[{strategies}]")
    return [line["loss"] for line in metrics(directory)]


@pytest.mark.parametrize("reference", ["adapter-off", "prepared"])
@pytest.mark.parametrize("strategies", [FAST, f'{FAST}, {{use="cuda-graphs"}}'], ids=["fast", "graphs"])
def test_strategies_change_nothing_but_by_rounding(
    recipe: Path, tmp_path: Path, strategies: str, reference: str
) -> None:
    expected = losses(recipe, tmp_path / "plain", PLAIN, reference)
    found = losses(recipe, tmp_path / "fast", strategies, reference)
    assert found == pytest.approx(expected, rel=0.05)
    assert found[-1] < found[0]


def test_graphs_are_recorded_with_the_adapter_off(recipe: Path, tmp_path: Path) -> None:
    """What is switched off while a micro-batch is recorded is off in every replay, and nothing is told against it."""
    losses(recipe, tmp_path / "run", f'{FAST}, {{use="cuda-graphs"}}', "adapter-off")
    notices = [line["what"] for line in metrics(tmp_path / "run", "notice")]
    assert not any("cuda-graphs" in what for what in notices)


@pytest.mark.parametrize("graphs", ["", ', {use="cuda-graphs"}'], ids=["fast", "graphs"])
def test_strategies_change_nothing_of_a_reward_model_but_by_rounding(recipe: Path, tmp_path: Path, graphs: str) -> None:
    expected = losses(recipe, tmp_path / "plain", PLAIN)
    found = losses(recipe, tmp_path / "fast", '{use="fast-layers"}, {use="fused-rms-norm"}' + graphs)
    assert found == pytest.approx(expected, rel=0.1)
    assert found[-1] < found[0]
    notices = [line["what"] for line in metrics(tmp_path / "fast", "notice")]
    assert not any("cuda-graphs" in what for what in notices)
