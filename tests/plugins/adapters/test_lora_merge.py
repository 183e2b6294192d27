"""Merging in float32 what peft knows of low-rank adapters: each kind says after it what it said before."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from fitune.testing import write_tiny_model
from fitune_plugins.adapters.lora_merge import merge

IDS = torch.arange(1, 40)[None]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


def _logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return cast(Tensor, model.eval()(input_ids=IDS).logits)


def _adapted(model: PreTrainedModel, **options: Any) -> PreTrainedModel:
    settings = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    with warnings.catch_warnings():
        # peft 0.21 asks transformers >= 5.20 by a name that it deprecates.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        adapted: Any = get_peft_model(cast(Any, model), LoraConfig(**{**settings, **options}))
    torch.manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return cast(PreTrainedModel, adapted)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["embed_tokens", "v_proj"]},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 3}},
    ],
    ids=["plain", "rslora", "dora", "modules_to_save", "embeddings", "patterns"],
)
def test_every_kind_says_what_it_said(directory: Path, options: dict[str, Any]) -> None:
    base: Any = AutoModelForCausalLM.from_pretrained(directory)
    before = _logits(base)
    adapted = _adapted(base, **options)
    expected = _logits(adapted)
    merged = merge(adapted, torch.float32)
    assert not any("lora" in name or "modules_to_save" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(_logits(merged), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before, expected, atol=0.1)


def test_layers_that_store_their_weight_transposed() -> None:
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=64, n_positions=64)
    model = GPT2LMHeadModel(config)
    adapted = _adapted(model, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    expected = _logits(adapted)
    torch.testing.assert_close(_logits(merge(adapted, torch.float32)), expected, rtol=1e-4, atol=1e-4)


def test_biases_that_were_trained_too() -> None:
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=64, n_positions=64)
    adapted = _adapted(GPT2LMHeadModel(config), target_modules=["c_attn"], fan_in_fan_out=True, lora_bias=True)
    expected = _logits(adapted)
    torch.testing.assert_close(_logits(merge(adapted, torch.float32)), expected, rtol=1e-4, atol=1e-4)


def test_a_bfloat16_model_is_merged_in_float32(directory: Path) -> None:
    """The product of A and B, and the sum, are rounded once, to the type that is asked for."""
    base: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    adapted = cast(Any, _adapted(base))
    layer = adapted.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    weight, one, other = layer.base_layer.weight, layer.lora_B["default"].weight, layer.lora_A["default"].weight
    exact = weight.double() + 4.0 * one.double() @ other.double()
    merged = merge(adapted, torch.float32)
    found = merged.get_submodule("model.layers.0.self_attn.q_proj").weight
    torch.testing.assert_close(cast(Tensor, found).double(), exact, rtol=1e-6, atol=1e-6)
