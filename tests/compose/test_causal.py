"""A model that sees later tokens is refused before it trains; one that does not is left as it is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from fitune import ModelError
from fitune.compose.causal import must_be_causal
from fitune.compose.encoders import DECODERS_IF_SAID, NEVER, must_not_say_so, sees_later
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry, write_recipe
from support.after_runs import refused

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "embedding_size": 16,
    "emb_dim": 16,
    "n_layers": 2,
    "n_heads": 2,
    "bos_token_id": None,
    "pad_token_id": 258,
}
TOLD = {
    "bert": "is_decoder",
    "roberta": "is_decoder",
    "electra": "is_decoder",
    "roformer": "is_decoder",
    "xlm": "causal",
}


def tiny(name: str, **more: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **SIZES, **more)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    model.train()
    return model


@pytest.mark.parametrize(("name", "key"), TOLD.items())
@pytest.mark.filterwarnings("ignore")
def test_one_that_can_be_an_encoder_has_to_say_that_it_is_none(name: str, key: str) -> None:
    with pytest.raises(ModelError, match=rf"sees tokens that come later .* Write {key} = true in its config.json$"):
        must_be_causal(tiny(name, **{key: False}))
    model = tiny(name, **{key: True})
    before = torch.random.get_rng_state()
    must_be_causal(model)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", [*DECODERS_IF_SAID, *NEVER])
@pytest.mark.filterwarnings("ignore")
def test_what_a_configuration_alone_tells_is_what_a_run_proves(name: str) -> None:
    model = tiny(name)
    config = json.loads(model.config.to_json_string())
    with pytest.raises(ModelError) as proven:
        must_be_causal(model)
    assert sees_later(config) == proven.value.message
    _, key = DECODERS_IF_SAID.get(name, ("", ""))
    config.pop(key, None)
    assert sees_later(config) == proven.value.message, "it is the default"
    if key:
        assert sees_later({**config, key: True}) is None


@pytest.mark.parametrize("config", [{}, {"model_type": 3}, {"model_type": "gpt_neox", "is_decoder": False}])
def test_where_a_configuration_does_not_tell_nothing_is_said(config: dict[str, object]) -> None:
    assert sees_later(config) is None


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "mamba", "rwkv"])
@pytest.mark.filterwarnings("ignore")
def test_those_that_cannot_are_taken(name: str) -> None:
    must_be_causal(tiny(name))


def test_a_layer_of_a_models_own_that_looks_ahead() -> None:
    model: Any = tiny("llama")

    class Ahead(nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden + hidden.mean(1, keepdim=True)

    for layer in model.model.layers:
        layer.self_attn.is_causal = False
        layer.mlp = Ahead()
    with pytest.raises(ModelError, match=r"^LlamaForCausalLM sees tokens that come later .* Train another model$"):
        must_be_causal(model)


@pytest.mark.filterwarnings("ignore")
def test_a_run_of_one_ends_in_a_line_before_its_first_step(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, {"adapter": {"targets": "all-linear"}})
    tiny("bert").save_pretrained(tmp_path / "model")
    said = refused("run", recipe, "--out", tmp_path / "run")
    assert "BertLMHeadModel sees tokens that come later in a row" in said
    assert "Write is_decoder = true in its config.json" in said
    assert not list((tmp_path / "run").glob("checkpoints/*"))
    assert refused("check", recipe) == refused("plan", recipe, "--gpu", "a10g") == said


def test_a_model_that_gives_scores_may_see_the_whole_row(tmp_path: Path) -> None:
    recipe = read_recipe(write_recipe(tmp_path), open_registry())
    with pytest.raises(ModelError, match=r"^BertLMHeadModel sees tokens that come later"):
        must_not_say_so(recipe, {"model_type": "bert"})
    record = replace(recipe.objective.record, convert=lambda options, model: model)
    must_not_say_so(replace(recipe, objective=replace(recipe.objective, record=record)), {"model_type": "bert"})
