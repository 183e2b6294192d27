"""A plain recipe on a card gets what costs no time, takes what was forecast, and learns the same but for rounding."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fitune.testing import write_recipe
from fitune.testing.tiny import write_tiny_tokenizer
from support.tiny import losses

pytestmark = pytest.mark.gpu

FREE = ["fast-layers", "chunked-loss", "expandable-segments", "fused-rms-norm", "fused-lora"]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Of a model of some 130 MB, whose rows take as much again."""
    config = LlamaConfig(
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=4,
        num_attention_heads=16,
        num_key_value_heads=8,
        vocab_size=8192,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=257,
        pad_token_id=258,
        tie_word_embeddings=False,
    )
    changes = {
        "model": {"dtype": "bfloat16"},
        "adapter": {"r": 8, "targets": "all-linear"},
        "memory": {"fast": True},
        "train": {"micro_batch": 4, "length": 512, "steps": 4, "learning_rate": 1e-3},
    }
    path = write_recipe(tmp_path / "recipe", changes)
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(path.parent / "model")
    write_tiny_tokenizer(path.parent / "model")
    row = {"messages": [{"role": "user", "content": "?" * 200}, {"role": "assistant", "content": "count " * 60}]}
    (path.parent / "data.jsonl").write_text((json.dumps(row) + "\n") * 32, encoding="utf-8")
    return path


def ran(recipe: Path, out: Path, *overrides: str) -> str:
    """What `ft run` prints: a process of its own, whose peak is what torch has measured."""
    switches = [word for override in overrides for word in ("--set", override)]
    command = [sys.executable, "-m", "fitune", "run", str(recipe), "--out", str(out), "--no-third-party", *switches]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_a_plain_recipe_runs_with_what_is_free_as_forecast(recipe: Path, tmp_path: Path) -> None:
    said = ran(recipe, tmp_path / "run")
    assert "added, since they cost no time: fast-layers, " in said
    written = tomli.loads((tmp_path / "run" / "recipe.toml").read_text(encoding="utf-8"))
    assert [table["use"] for table in written["memory"]["strategy"]] == FREE
    kept = json.loads((tmp_path / "run" / "memory.json").read_text(encoding="utf-8"))
    assert kept["forecast"]["error"] is None
    assert kept["forecast"]["allocated"] == pytest.approx(kept["measured"]["allocated"], rel=0.01)
    assert "added, since" not in ran(recipe, tmp_path / "plain", "memory.fast=false")
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "plain"), rel=0.02)
    plain = json.loads((tmp_path / "plain" / "memory.json").read_text(encoding="utf-8"))
    assert kept["measured"]["allocated"] < plain["measured"]["allocated"]


def test_deterministic_runs_with_what_is_free_are_equal_to_the_bit(recipe: Path, tmp_path: Path) -> None:
    for name in ("one", "other"):
        assert "added, since they cost no time: fast-layers, " in ran(recipe, tmp_path / name, "deterministic=true")
    assert losses(tmp_path / "one") == losses(tmp_path / "other")
