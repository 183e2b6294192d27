"""Runs of preference objectives from end to end: what they learn, measure and keep."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fitune.errors import FtError
from fitune.testing import open_registry
from fitune.trained.evaluate import evaluate, find_to_evaluate
from support.tiny import assert_close, gradients, metrics, train

PAIRS = [
    {"prompt": "ab" * (n % 3 + 1), "chosen": "yes " * (1 + n % 2), "rejected": "no " * (1 + n % 3)} for n in range(12)
]
SETTINGS = ("train.length=128", "train.steps=6", "train.learning_rate=1e-2", "checkpoint.steps=3")


@pytest.fixture
def pairs(recipe_path: Path) -> Path:
    """The tiny recipe, with pairs for its data."""
    (recipe_path.parent / "data.jsonl").write_text("\n".join(map(json.dumps, PAIRS)) + "\n", encoding="utf-8")
    return recipe_path


def use(name: str, **options: object) -> str:
    more = "".join(f", {key}={json.dumps(value)}" for key, value in options.items())
    return f'objective={{use="{name}"{more}}}'


@pytest.mark.parametrize("name", ["dpo", "ipo", "kto", "orpo", "simpo", "cpo"])
def test_a_run_learns_preferences(name: str, pairs: Path, tmp_path: Path) -> None:
    train(pairs, tmp_path / "run", *SETTINGS, use(name), "eval.fraction=0.25", "train.steps=8")
    before, after = metrics(tmp_path / "run", "evaluation")
    assert after["loss"] < before["loss"]
    assert after["accuracy"] >= before["accuracy"]
    if name in ("dpo", "ipo", "kto"):  # beside a reference, which the model is before the first step
        assert after["accuracy"] > (0.5 if name == "kto" else 0.8)  # kto judges texts by themselves, not beside another
        assert before["accuracy"] == 0.5
        assert before["rewards/chosen"] == before["rewards/rejected"] == 0
    assert after["rewards/chosen"] - after["rewards/rejected"] > before["rewards/chosen"] - before["rewards/rejected"]
    assert {"accuracy", "log_probs/chosen", "log_probs/rejected"} <= metrics(tmp_path / "run")[0].keys()


def test_prepared_and_adapter_off_give_the_same_gradients(pairs: Path) -> None:
    asked = (*SETTINGS, "train.steps=3")
    found = gradients(pairs, *asked, use("dpo", reference="prepared"))
    for one, other in zip(found, gradients(pairs, *asked, use("dpo", reference="adapter-off")), strict=True):
        assert_close(one, other, relative=1e-4)


@pytest.mark.parametrize(
    "settings",
    [("train.micro_batch=1", 'memory.strategy=[{use="accumulation", steps=4}]'), ("train.micro_batch=4",)],
)
def test_the_gradient_does_not_depend_on_micro_batches(settings: tuple[str, ...], pairs: Path) -> None:
    asked = (*SETTINGS, use("dpo"), "train.steps=2")
    halves = 'memory.strategy=[{use="accumulation", steps=2}]'
    expected = gradients(pairs, *asked, "train.micro_batch=2", halves)
    for one, other in zip(gradients(pairs, *asked, *settings), expected, strict=True):
        assert_close(one, other, relative=1e-4)


@pytest.mark.parametrize(
    "strategies",
    [
        '{use="chunked-loss", tokens=5}',
        '{use="gradient-checkpointing"}',
        '{use="fused-lora"}, {use="fused-rms-norm"}',
        '{use="fast-layers"}, {use="chunked-loss"}',
        '{use="tiled-mlp", tokens=16}, {use="recompute-pointwise"}',
        '{use="host-embeddings"}',
    ],
)
def test_memory_strategies_change_nothing_but_by_rounding(strategies: str, pairs: Path) -> None:
    """The reference's pass goes through them too, with the adapter off."""
    asked = (*SETTINGS, use("dpo", beta=1.0), "train.steps=3", "adapter.targets=all-linear")
    expected = gradients(pairs, *asked)
    for one, other in zip(gradients(pairs, *asked, f"memory.strategy=[{strategies}]"), expected, strict=True):
        assert_close(one, other, relative=1e-4)


def test_full_fine_tuning_takes_a_prepared_reference(pairs: Path, tmp_path: Path) -> None:
    asked = (*SETTINGS, use("dpo"), 'adapter={use="none"}', "eval.fraction=0.25", "train.learning_rate=1e-3")
    run = train(pairs, tmp_path / "run", *asked)
    assert run.recipe.objective.reference == "prepared"
    before, after = metrics(tmp_path / "run", "evaluation")
    assert before["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert after["loss"] < before["loss"]
    assert after["accuracy"] > 0.8
    again = evaluate(find_to_evaluate(tmp_path / "run", open_registry()))
    assert again.loss == pytest.approx(after["loss"], rel=1e-5)
    assert again.metrics["accuracy"] == after["accuracy"]


def test_an_adapter_is_gone_on_with(pairs: Path, tmp_path: Path) -> None:
    """SFT first; DPO then begins with its adapter, which is its reference, too."""
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS]
    (pairs.parent / "sft.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    train(pairs, tmp_path / "sft", *SETTINGS, f"data.path={pairs.parent / 'sft.jsonl'}")
    asked = (*SETTINGS, use("dpo"), f"adapter.from={tmp_path / 'sft'}", "eval.fraction=0.25")
    run = train(pairs, tmp_path / "dpo", *asked)
    assert run.recipe.objective.reference == "prepared"
    before, after = metrics(tmp_path / "dpo", "evaluation")
    assert before["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert before["rewards/chosen"] == pytest.approx(0, abs=1e-5)
    assert after["accuracy"] > 0.8
    again = evaluate(find_to_evaluate(tmp_path / "dpo", open_registry()), base=True)
    assert again.loss == pytest.approx(before["loss"], rel=1e-4)
    identity = json.loads((tmp_path / "dpo" / "identity.json").read_text(encoding="utf-8"))
    assert identity["start"]
    with pytest.raises(FtError, match="no such directory"):
        train(pairs, tmp_path / "none", *SETTINGS, f"adapter.from={tmp_path / 'nowhere'}")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ((use("dpo", reference="adapter-off"), 'adapter={use="none"}'), "cannot be switched off"),
        ((use("orpo", reference="prepared"),), '"reference" has no effect'),
        ((use("sft", reference="prepared"),), '"reference" has no effect'),
        ((use("dpo", reference="elsewhere"),), '"reference"'),
        ((use("dpo", beta=0),), '"beta"'),
        ((use("kto", desirable=0, undesirable=0),), "both 0"),
        ((use("dpoo"),), 'Did you mean "dpo"'),
    ],
)
def test_mistakes_are_one_clear_error(overrides: tuple[str, ...], said: str, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(FtError, match=said):
        train(pairs, tmp_path / "run", *overrides)
