"""Adapter `ia3`: vectors by peft, loaded by plain peft, merged in float32, forecast event by event."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM

from fitune import ModelError, RecipeError
from fitune.recipe.reader import read_recipe
from fitune.testing import assert_adapter, open_registry
from fitune.train.loop import train
from fitune.train.save import save
from fitune_plugins.adapters.ia3 import Ia3Options, ft_adapters
from support.after_runs import ft
from support.architectures import recipe_of
from support.nothing import nothing
from support.real_steps import both_logs, events
from support.tiny import losses, parts_of
from support.tiny import train as train_run

IDS = torch.arange(1, 40)[None]
(IA3,) = ft_adapters()


def _logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=IDS).logits
    return found


def test_contract(tmp_path: Path) -> None:
    assert_adapter(nothing(), "ia3", tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_plain_peft_loads_what_was_saved(recipe_path: Path, dtype: str) -> None:
    parts = parts_of(recipe_path, 'adapter={use="ia3"}', "train.learning_rate=0.1", f'model.dtype="{dtype}"')
    assert {p.dtype for p in parts.step.trainables.parameters} == {getattr(torch, dtype)}
    assert parts.run.trainable == 2 * (16 + 16 + 64)  # keys, values, and what down_proj takes, of two layers
    assert parts.run.told == ("ia3: 4 layers scaled behind, 2 before",)
    base = AutoModelForCausalLM.from_pretrained(recipe_path.parent / "model", dtype=dtype)
    before = _logits(base)
    assert torch.equal(_logits(parts.run.model), before)
    list(train(parts))
    after = _logits(parts.run.model)
    assert not torch.allclose(after, before, atol=0.1)
    with warnings.catch_warnings():
        # peft 0.21 asks transformers >= 5.20 by a name that it deprecates.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        loaded = PeftModel.from_pretrained(base, str(save(parts)))
    torch.testing.assert_close(_logits(loaded), after)


def test_a_run_learns_and_is_merged(recipe_path: Path, tmp_path: Path) -> None:
    how = ['adapter={use="ia3"}', "train.learning_rate=0.1", "train.steps=8"]
    train_run(recipe_path, tmp_path / "run", *how)
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0] - 0.1
    ft("merge", tmp_path / "run", "--to", tmp_path / "merged")  # which compares logits
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_what_is_traced_is_what_is_done(tmp_path: Path) -> None:
    recipe_of(tmp_path, "llama", length=32)
    forecast, real = both_logs(read_recipe(tmp_path / "recipe.toml", open_registry(), ['adapter={use="ia3"}']))
    assert events(forecast) == events(real)


def test_layers_that_store_their_weight_transposed() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=64, n_positions=64))
    adapted: Any = IA3.attach(Ia3Options(targets=("c_attn", "mlp.c_proj"), feedforward=("mlp.c_proj",)), model)
    with torch.no_grad():
        for parameter in (p for p in adapted.parameters() if p.requires_grad):
            parameter.mul_(torch.rand_like(parameter) + 0.5)
    expected = _logits(adapted)
    assert IA3.merge is not None
    torch.testing.assert_close(_logits(IA3.merge(adapted, torch.float32)), expected, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_scaled_is_refused(recipe_path: Path) -> None:
    with pytest.raises(RecipeError, match='"feedforward" names "up_proj", which is not among "targets"'):
        read_recipe(recipe_path, open_registry(), ['adapter={use="ia3", feedforward=["up_proj"]}'])
    with pytest.raises(ModelError, match='targets: the model has no layer "c_attn"'):
        parts_of(recipe_path, 'adapter={use="ia3", targets=["c_attn"], feedforward=[]}')
    config = MixtralConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        num_local_experts=2,
    )
    with pytest.raises(ModelError, match="is a tensor of experts, which IA3 cannot scale"):
        IA3.attach(Ia3Options(), MixtralForCausalLM(config))
