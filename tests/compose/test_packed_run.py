"""A run on packed data makes the steps of the run on the same data that is not packed."""

from __future__ import annotations

from pathlib import Path

import pytest

from fitune import ModelError
from fitune.testing import write_recipe
from support.tiny import assert_close, gradients, metrics, parts_of, train

ALONE = ('data.stage=[{use="chat"}]', "train.micro_batch=12", "train.steps=2")
PACKED = ('data.stage=[{use="chat"}, {use="tokenize"}, {use="pack"}]', "train.micro_batch=12", "train.steps=2")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path / "recipe")


@pytest.mark.parametrize("strategies", ["[]", '[{use="chunked-loss"}, {use="gradient-checkpointing"}]'])
def test_gradients_of_a_packed_run(recipe: Path, strategies: str) -> None:
    """All documents make one step, in whatever rows they come."""
    with_strategies = f"memory.strategy={strategies}"
    expected = gradients(recipe, *ALONE, with_strategies)
    found = gradients(recipe, *PACKED, with_strategies)
    assert len(found) == len(expected) == 2
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, relative=1e-4)


def test_a_packed_run_says_how_and_has_fewer_rows(recipe: Path, tmp_path: Path) -> None:
    alone, packed = train(recipe, tmp_path / "alone", *ALONE), train(recipe, tmp_path / "packed", *PACKED)
    assert packed.rows < alone.rows / 2
    for line, other in zip(metrics(tmp_path / "packed"), metrics(tmp_path / "alone"), strict=True):
        assert line["tokens"] == other["tokens"]
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-4)
    assert alone.plan.notices == ()
    steps = [line for line in metrics(tmp_path / "packed") if line["event"] == "step"]
    tokens = sum(line["tokens"] for line in steps) / steps[-1]["epoch"]
    assert packed.plan.notices == (
        "packed documents are kept apart by a block mask, as variable-length attention is not to be had: "
        "it needs an NVIDIA GPU",
        f"packing efficiency {tokens / (packed.rows * packed.recipe.train.length):.4f}",
    )


def test_held_out_rows_are_not_packed(recipe: Path) -> None:
    parts = parts_of(recipe, *PACKED, "eval.fraction=0.5")
    assert parts.evaluator is not None
    assert any(row.lengths for row in parts.examples)
    assert not any(row.lengths for row in parts.evaluator.examples)


def test_a_model_that_cannot_keep_documents_apart_stops_the_run_before_it_starts(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers.models.llama.modeling_llama as llama

    monkeypatch.setattr(llama, "create_causal_mask", lambda **named: None)  # as where positions never reach the mask
    with pytest.raises(ModelError, match=r"^pack: model\.layers\.0\.self_attn \(LlamaAttention\) of LlamaForCausalLM"):
        parts_of(recipe, *PACKED)
    parts_of(recipe, *ALONE)
