"""Added tokens and LoftQ on a card: the forecast beside what was measured. Skipped, visibly, where there is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fitune.testing import write_recipe
from fitune.testing.tiny import write_tiny_tokenizer
from support.tiny import losses, train
from support.wide_model import write_wide_model

pytestmark = pytest.mark.gpu

LARGE = 40_000
"""Rows of the model's tables: 20 MiB each, so that a copy of one would show."""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe in bfloat16 that adds tokens to a model with large tables of its own for embeddings and head."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokens = {"add_tokens": ["Count", "<tool>"], "add_special_tokens": ["<|mark|>"]}
    path = write_recipe(tmp_path / "recipe", {"model": {"dtype": "bfloat16", **tokens}})
    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=LARGE,
        pad_token_id=258,
        eos_token_id=257,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(path.parent / "model")
    write_tiny_tokenizer(path.parent / "model")
    return path


@pytest.mark.parametrize("strategy", ["", '{use="chunked-loss"}', '{use="nf4"}'])
def test_the_forecast_is_what_is_measured(recipe: Path, tmp_path: Path, strategy: str) -> None:
    """In a process of its own: what torch has measured is the process' peak."""
    run, asked = tmp_path / "run", [f"--set=memory.strategy=[{strategy}]", "--set=train.steps=4"]
    command = [sys.executable, "-m", "fitune", "run", str(recipe), "--out", str(run), "--no-third-party", *asked]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    values: dict[str, Any] = json.loads((run / "memory.json").read_text(encoding="utf-8"))
    forecast, measured = values["forecast"], values["measured"]
    assert forecast["allocated"] == pytest.approx(measured["allocated"], rel=0.02)
    assert losses(run)[-1] < losses(run)[0]


def test_loftq_begins_nearer(tmp_path: Path) -> None:
    changes = {"model": {"dtype": "bfloat16"}, "adapter": {"targets": "all-linear", "r": 32, "alpha": 32}}
    path = write_recipe(tmp_path / "recipe", {**changes, "memory": {"strategy": [{"use": "nf4"}]}})
    write_wide_model(path.parent / "model")
    found = {}
    for name in ("loftq", "default", "plain"):
        strategies = [] if name != "plain" else ["memory.strategy=[]"]
        init = "default" if name == "plain" else name
        train(path, tmp_path / name, f'adapter.init="{init}"', "train.steps=1", *strategies)
        found[name] = losses(tmp_path / name)[0]
    assert abs(found["loftq"] - found["plain"]) < abs(found["default"] - found["plain"])
