"""Attention that a model changes for good at its first short batch is settled as it is loaded, so that runs go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BigBirdConfig

from fitune_plugins.loaders.loading import build_model, load_model

LONG = 256
"""Tokens, of which BigBird's own attention would leave some pairs out: blocks of 16, of which it sees a few."""


def _written(directory: Path) -> Path:
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}
    config = BigBirdConfig(
        **sizes, intermediate_size=32, max_position_embeddings=512, block_size=16, num_random_blocks=1, is_decoder=True
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return directory


def test_a_long_batch_is_the_same_before_and_after_a_short_one(tmp_path: Path) -> None:
    model: Any = load_model(str(_written(tmp_path / "model")), "float32", torch.device("cpu"))
    long, short = (torch.arange(length)[None] % 64 for length in (LONG, 8))
    with torch.no_grad():
        before = model(input_ids=long, use_cache=False).logits
        model(input_ids=short, use_cache=False)
        assert torch.equal(model(input_ids=long, use_cache=False).logits, before)
    model.save_pretrained(tmp_path / "saved")
    again: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(again(input_ids=long, use_cache=False).logits, before), "what is saved says it, too"


def test_a_forecast_settles_it_too(tmp_path: Path) -> None:
    model: Any = build_model(str(_written(tmp_path / "model")), "float32")
    assert model.config.attention_type == "original_full"
    assert {layer.attention_type for layer in model.bert.encoder.layer} == {"original_full"}
