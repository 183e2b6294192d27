"""Adapters `lora` and `none`: what trains, in what type, from which seed, and what is saved."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, MixtralForCausalLM, PreTrainedModel

from fitune import ModelError
from fitune.train.loop import train
from fitune.train.save import save
from fitune_plugins.adapters.lora import LoraOptions, ft_adapters
from support.tiny import adapter, parts_of
from support.tiny import train as train_run

IDS = torch.arange(1, 40)[None]


def _logits(model: nn.Module) -> Tensor:
    model.eval()
    with torch.no_grad():
        return cast(Tensor, model(input_ids=IDS).logits)


def _targets(recipe: Path, targets: str) -> set[str]:
    model = cast(PeftModel, parts_of(recipe, f"adapter.targets={targets}").run.model)
    return {str(name).rpartition(".")[2] for name in model.targeted_module_names}


def _load_plain(model: Path, directory: Path) -> nn.Module:
    base = AutoModelForCausalLM.from_pretrained(model)
    import warnings

    with warnings.catch_warnings():
        # peft 0.21 asks transformers >= 5.20 by a name that it deprecates.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        return cast(nn.Module, PeftModel.from_pretrained(base, str(directory)))


@pytest.mark.parametrize("targets", ['["q_proj", "v_proj"]', '["lm_head", "down_proj"]', '["embed_tokens"]'])
def test_plain_peft_loads_what_was_saved(recipe_path: Path, targets: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = parts_of(recipe_path, f"adapter.targets={targets}", "train.learning_rate=0.1")
    list(train(parts))

    def refuse(*_: object) -> None:
        raise AssertionError("saving asks the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    directory = save(parts)
    trained = _logits(parts.run.model)
    torch.testing.assert_close(_logits(_load_plain(recipe_path.parent / "model", directory)), trained)
    base = AutoModelForCausalLM.from_pretrained(recipe_path.parent / "model")
    assert not torch.allclose(_logits(base), trained, atol=1e-2)  # the adapter does something
    saved = load_file(directory / "adapter_model.safetensors")
    assert all("lora_" in name for name in saved)  # nothing of the base model, the adapted head's weight included
    text = "Count to 3."
    again = AutoTokenizer.from_pretrained(directory)
    assert again(text).input_ids == parts.run.tokenizer(text).input_ids
    assert again.chat_template == parts.run.tokenizer.chat_template


def test_presets(recipe_path: Path) -> None:
    attention, mlp = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}
    assert _targets(recipe_path, "attention") == attention
    assert _targets(recipe_path, "mlp") == mlp
    assert _targets(recipe_path, "all-linear") == attention | mlp  # not the head
    assert _targets(recipe_path, '["lm_head", "q_proj"]') == {"lm_head", "q_proj"}


def test_defaults(recipe_path: Path) -> None:
    assert LoraOptions() == LoraOptions(r=4, alpha=8, dropout=0.0, targets=("q_proj", "v_proj"), dtype="base")
    model = cast(Any, parts_of(recipe_path).run.model)
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    assert layer.lora_A["default"].weight.shape == (4, 32)
    assert layer.scaling["default"] == 2.0  # alpha / r
    assert {name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad} == {"default"}


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ('["q_proj", "v_prj"]', 'the model has no layer "v_prj". Did you mean "v_proj"?'),
        ('["q_proj", "self_attn"]', '"self_attn" is no layer, but holds several. Name those:'),
        ('["layer"]', 'the model has no layer "layer"'),
    ],
)
def test_a_wrong_target_beside_a_right_one(recipe_path: Path, targets: str, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        parts_of(recipe_path, f"adapter.targets={targets}")
    assert message in caught.value.message
    assert caught.value.message.startswith("[adapter] ")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(("choice", "dtype"), [("base", torch.bfloat16), ("float32", torch.float32)])
def test_adapters_compute_in_the_type_that_was_asked_for(recipe_path: Path, choice: str, dtype: torch.dtype) -> None:
    parts = parts_of(recipe_path, "model.dtype=bfloat16", f"adapter.dtype={choice}")
    assert {p.dtype for p in parts.step.trainables.parameters} == {dtype}
    assert {p.dtype for p in parts.step.trainables.masters} == {torch.float32}
    assert {p.dtype for p in parts.run.model.parameters() if not p.requires_grad} == {torch.bfloat16}
    list(train(parts))
    saved = adapter(save(parts).parent)
    assert {w.dtype for w in saved.values()} == {dtype}


def test_first_weights_come_from_the_seed(recipe_path: Path) -> None:
    def first(seed: int) -> list[Tensor]:
        torch.rand(seed)  # whatever was drawn before
        return [p.detach().clone() for p in parts_of(recipe_path, f"seed={seed}").step.trainables.parameters]

    one, same, other = first(1), first(1), first(2)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a.any()]  # B starts at zero
    assert len(pairs) == 4
    assert not any(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("wrong", ['"temperature": 0.9, "top_p": 0.6', '"num_beams": 1, "early_stopping": true'])
def test_full_fine_tuning_saves_a_model(recipe_path: Path, wrong: str) -> None:
    """With the model's own generation settings, which some versions of transformers load, but refuse to save."""
    settings = f'{{{wrong}, "eos_token_id": 257}}'
    (recipe_path.parent / "model" / "generation_config.json").write_text(settings, encoding="utf-8")
    parts = parts_of(recipe_path, 'adapter={use="none"}')
    assert parts.run.trainable == parts.run.parameters
    list(train(parts))
    directory = save(parts)
    assert directory.name == "model"
    assert (directory / "model.safetensors").is_file()
    again = AutoModelForCausalLM.from_pretrained(directory)
    assert isinstance(again, PreTrainedModel)
    torch.testing.assert_close(_logits(again), _logits(parts.run.model))
    assert again.dtype == torch.float32
    assert again.generation_config is not None
    assert again.generation_config.eos_token_id == 257


def test_only_the_adapter_changes(recipe_path: Path, tmp_path: Path) -> None:
    run = train_run(recipe_path, tmp_path / "run", "train.weight_decay=0.5")
    base = load_file(recipe_path.parent / "model" / "model.safetensors")
    inside = cast(Any, run.model).unload().state_dict()
    assert base.keys() <= inside.keys()
    assert all(torch.equal(inside[name], weight) for name, weight in base.items())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of peft, for experts that it leaves out
def test_all_linear_layers_of_a_mixture_of_experts_are_adapted() -> None:
    config = MixtralConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
        vocab_size=32,
    )
    (lora,) = ft_adapters()
    adapted = lora.attach(LoraOptions(targets="all-linear"), MixtralForCausalLM(config))
    trained = {name.split(".lora_")[0].rsplit(".", 1)[1] for name, p in adapted.named_parameters() if p.requires_grad}
    assert {"q_proj", "k_proj", "v_proj", "o_proj"} <= trained
