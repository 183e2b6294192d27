"""Runs that add tokens: gone on with, opened, merged, exported, and beside other strategies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fitune import (
    ModelError,
    RunError,
    StepReport,
    added_tokens,
)
from fitune.checkpoint.begin import begun_from
from fitune.compose.parts import Parts, compose
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry, write_recipe
from fitune.train.loop import train
from fitune.trained.export.gguf_tokenizer import CONTROL, USER_DEFINED
from fitune.trained.open import find, open_run
from support.added_tokens import ADDED, is_tied, logits_of, write_adding
from support.after_runs import finished, ft
from support.gguf_models import bytewise, write
from support.objectives import write_preference_recipe
from support.resuming import go, stop, weights
from support.tiny import losses, parts_of
from support.tiny import train as train_run


@pytest.fixture(params=[False, True], ids=["apart", "tied"])
def recipe(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A recipe that adds three tokens."""
    return write_adding(tmp_path / "recipe", tied=request.param)


@pytest.mark.parametrize(
    "adapter",
    [
        '{use="lora", modules_to_save=["embed_tokens"]}',
        '{use="lora", init="pissa", r=2}',
        '{use="lora", dora=true, dtype="float32"}',
        '{use="none"}',
    ],
)
def test_a_run_is_opened_merged_and_gone_on_from(recipe: Path, tmp_path: Path, adapter: str) -> None:
    run = tmp_path / "run"
    done = train_run(recipe, run, f"adapter={adapter}", "train.learning_rate=0.01")
    after = logits_of(done.model)
    torch.testing.assert_close(logits_of(open_run(find(run, open_registry())).model), after, rtol=1e-4, atol=1e-4)
    ft("merge", run, "--to", tmp_path / "merged", "--dtype", "float32")  # which compares logits
    merged: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert is_tied(merged) == is_tied(AutoModelForCausalLM.from_pretrained(recipe.parent / "model"))
    torch.testing.assert_close(logits_of(merged), after, rtol=1e-4, atol=1e-4)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "merged")) == 262
    again = logits_of(parts_of_from(recipe, run, adapter).run.model)
    torch.testing.assert_close(again, after, rtol=1e-4, atol=1e-4)


def parts_of_from(recipe: Path, run: Path, adapter: str) -> Parts:
    """A run that begins with what another has trained."""
    asked = read_recipe(recipe, open_registry(), [f"adapter={adapter[:-1]}, from='{run}'}}"])
    return compose(asked, recipe.parent / "run", start=begun_from(asked))


def test_it_goes_on_from_the_same_tokens_alone(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe", {"model": ADDED})
    train_run(recipe, tmp_path / "run")
    turned = ['model.add_tokens=["<tool>", "Count"]', f"adapter.from='{tmp_path / 'run'}'"]
    said = r'with \[model\] add_tokens = \["Count", "<tool>"\], and here it is \["<tool>", "Count"\]. Give it the same'
    with pytest.raises(RunError, match=said):
        begun_from(read_recipe(recipe, open_registry(), turned))
    with pytest.raises(
        ModelError, match=r"it has the rows of tokens 259 to 261, and \[model\] add_tokens adds 259 to 260"
    ):
        open_run(find(tmp_path / "run", open_registry(), overrides=["model.add_special_tokens=[]"]))


def test_a_run_that_is_stopped_goes_on_to_the_bit(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe", {"model": ADDED, "deterministic": True, "adapter": {"dropout": 0.2}})
    how = ("train.steps=5", "train.learning_rate=0.02")
    train_run(recipe, tmp_path / "whole", *how)
    stop(recipe, tmp_path / "run", 2, *how)
    go(tmp_path / "run")
    whole, own = (weights(tmp_path / run) for run in ("whole", "run"))
    assert all(map(torch.equal, whole, own))


def test_answers_and_the_card(tmp_path: Path) -> None:
    run = finished(tmp_path, model=ADDED)
    out, _ = ft("generate", run, "--prompt", "Count to 2.", "--max-new-tokens", "4")
    assert out.strip()
    card = (run / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "base.resize_token_embeddings(" in card
    assert '"<tool>"' in (run / "recipe.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("strategy", ["gradient-checkpointing", "fused-lora", "muon", "chunked-loss"])
def test_strategies_know_them(recipe: Path, tmp_path: Path, strategy: str) -> None:
    how = ["train.steps=4", "train.learning_rate=0.005"]
    train_run(recipe, tmp_path / "run", *how, f'memory.strategy=[{{use="{strategy}"}}]')
    train_run(recipe, tmp_path / "plain", *how)
    assert losses(tmp_path / "run") == pytest.approx(
        losses(tmp_path / "plain"), rel=0.2 if strategy == "muon" else 1e-4
    )


def test_beside_four_bits(tmp_path: Path) -> None:
    """Whose tables stay as they are: what is merged is what was trained."""
    recipe = write_recipe(tmp_path / "recipe", {"model": {**ADDED, "dtype": "bfloat16"}})
    run = tmp_path / "run"
    done = train_run(recipe, run, 'memory.strategy=[{use="nf4"}]', "train.learning_rate=0.02")
    after = logits_of(done.model)
    torch.testing.assert_close(logits_of(open_run(find(run, open_registry())).model), after)
    ft("merge", run, "--to", tmp_path / "merged")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").config.vocab_size == 264


def test_a_model_that_gives_scores(tmp_path: Path) -> None:
    """It has no output head: the rows of the embeddings train alone."""
    path = write_preference_recipe(tmp_path, {"model": ADDED})
    parts = parts_of(path, 'objective={use="reward"}')
    rows = [n for n, p in parts.run.model.named_parameters() if p.requires_grad and "trainable_tokens" in n]
    assert added_tokens(parts.run.model) == (259, 260, 261)
    assert [name.split(".token_adapter")[0].rpartition(".")[2] for name in rows] == ["embed_tokens"]
    assert [report.loss for report in train(parts) if isinstance(report, StepReport)]


def test_a_gguf_file_has_them(tmp_path: Path) -> None:
    model = write(tmp_path / "llama", "llama, tied", bytewise("smollm"))
    run = finished(tmp_path, "eval.exact_match=false", model={**ADDED, "path": str(model)})
    ft("export", run, "--to", "gguf", "--type", "q8_0")  # which makes tokens of the rows by the file, and compares
    fields = gguf.GGUFReader(run / "export" / "gguf-q8_0" / "tiny-q8_0.gguf").fields
    words, kinds = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type"))
    found = {word: kind for word, kind in zip(words, kinds, strict=True) if word in ("<tool>", "<|mark|>")}
    assert found == {"<tool>": USER_DEFINED, "<|mark|>": CONTROL}
