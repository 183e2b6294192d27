"""What low-rank adapters begin with: the same model as before, and files that are good on it as it is on disk."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM

from fitune import ModelError, RecipeError
from fitune.recipe.reader import read_recipe
from fitune.testing import assert_adapter, open_registry, write_recipe, write_tiny_model
from fitune.train.loop import train
from fitune.train.save import save
from fitune_plugins.adapters.lora import LoraOptions, ft_adapters
from support.architectures import recipe_of
from support.nothing import nothing
from support.objectives import write_preference_recipe
from support.real_steps import both_logs, events
from support.tiny import losses, parts_of
from support.tiny import train as train_run

IDS = torch.arange(1, 40)[None]
(LORA,) = ft_adapters()


def _logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=IDS % 64).logits
    return found


def _plain(model: nn.Module, directory: Path) -> nn.Module:
    with warnings.catch_warnings():
        # peft 0.21 asks transformers >= 5.20 by a name that it deprecates.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        loaded: nn.Module = PeftModel.from_pretrained(model, str(directory))
        return loaded


def _with_components(directory: Path) -> Any:
    """A model whose matrices' singular values halve from one to the next, so that the largest are well known."""
    model = AutoModelForCausalLM.from_pretrained(write_tiny_model(directory))
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.ndim == 2):
            left, values, right = torch.linalg.svd(parameter, full_matrices=False)
            parameter.copy_(left * 0.5 ** torch.arange(len(values)) @ right)
    return model


@pytest.mark.parametrize("init", ["gaussian", "orthogonal", "pissa", "olora"])
def test_contract(tmp_path: Path, init: str) -> None:
    assert_adapter(nothing(), "lora", tmp_path, {"init": init, "targets": "all-linear"})


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_it_begins_as_plain_pefts(tmp_path: Path, init: str) -> None:
    """In float32, product and rest; A and B each up to a sign."""
    model, other = (_with_components(tmp_path / name) for name in ("one", "other"))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    adapted: Any = LORA.attach(LoraOptions(init=init, targets=("q_proj", "down_proj")), model)  # type: ignore[arg-type]
    how: Any = "pissa_niter_16" if init == "pissa" else init
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], init_lora_weights=how)
    with warnings.catch_warnings():
        # peft 0.21 asks transformers >= 5.20 by a name that it deprecates.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        plain: Any = get_peft_model(other, config)
    for number in range(2):
        for place in ("self_attn.q_proj", "mlp.down_proj"):
            name = f"model.layers.{number}.{place}"
            found, wanted = (one.get_base_model().get_submodule(name) for one in (adapted, plain))
            products = [one.lora_B["default"].weight @ one.lora_A["default"].weight for one in (found, wanted)]
            torch.testing.assert_close(*products, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found.base_layer.weight, wanted.base_layer.weight, rtol=1e-4, atol=1e-5)
            whole = found.base_layer.weight + 2.0 * products[0]
            torch.testing.assert_close(whole, before[f"{name}.weight"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize(
    "more",
    ["", ", rslora=true", ', ranks=[{targets="q_proj", r=2, alpha=3.0}]', ', dtype="float32"'],
    ids=["plain", "rslora", "ranks", "float32"],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_plain_peft_loads_what_was_saved(recipe_path: Path, init: str, more: str, dtype: str) -> None:
    adapter = f'adapter={{use="lora", init="{init}", targets="all-linear"{more}}}'
    parts = parts_of(recipe_path, adapter, "train.learning_rate=0.02", f'model.dtype="{dtype}"')
    base = AutoModelForCausalLM.from_pretrained(recipe_path.parent / "model", dtype=dtype)
    before, close = _logits(base), 1e-4 if dtype == "float32" else 0.05
    torch.testing.assert_close(_logits(parts.run.model), before, rtol=close, atol=close)
    list(train(parts))
    trained = _logits(parts.run.model)
    moved = float((trained - before).abs().max())
    assert moved > 0.3
    directory = save(parts)
    again = _plain(base, directory)
    torch.testing.assert_close(_logits(again), trained, rtol=close, atol=close)
    own = LORA.load
    assert own is not None
    fresh = AutoModelForCausalLM.from_pretrained(recipe_path.parent / "model", dtype=dtype)
    loaded = own(parts.run.recipe.adapter.options, fresh, directory)
    torch.testing.assert_close(_logits(loaded), trained, rtol=close, atol=close)  # peft's adapters are in float32 there


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_layers_that_store_their_weight_transposed(tmp_path: Path, init: str) -> None:
    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=64, n_positions=64))
    before = _logits(model)
    adapted: Any = LORA.attach(LoraOptions(init=init, targets=("c_attn", "c_proj")), model)  # type: ignore[arg-type]
    torch.testing.assert_close(_logits(adapted), before, rtol=1e-4, atol=1e-4)
    assert adapted.get_base_model().transformer.h[0].attn.c_attn.lora_B["default"].weight.any()


def test_it_goes_on_from_first_weights_of_another_machine(tmp_path: Path) -> None:
    """Of which no bit may be the same: the base gives away what that one's did."""
    options = LoraOptions(init="pissa")
    base = AutoModelForCausalLM.from_pretrained(write_tiny_model(tmp_path / "model"))
    torch.manual_seed(1)
    first: Any = LORA.attach(options, base)
    with torch.no_grad():
        for parameter in (p for p in first.parameters() if p.requires_grad):
            parameter.add_(torch.randn_like(parameter) * 0.1)
    (tmp_path / "saved").mkdir()
    LORA.save(first, tmp_path / "saved")
    second: Any = LORA.attach(options, AutoModelForCausalLM.from_pretrained(tmp_path / "model"))
    for layer in (m for m in second.modules() if hasattr(m, "first_A")):  # as if its decomposition had signs turned
        for name in ("first_A", "first_B"):
            getattr(layer, name).neg_()
    assert LORA.fill is not None
    LORA.fill(options, second, tmp_path / "saved")
    torch.testing.assert_close(_logits(second), _logits(first), rtol=1e-4, atol=1e-4)
    assert LORA.off is not None
    with LORA.off(second):
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        torch.testing.assert_close(_logits(second), _logits(plain), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("init", ["default", "pissa", "orthogonal"])
def test_what_is_traced_is_what_is_done(tmp_path: Path, init: str) -> None:
    recipe_of(tmp_path, "llama", length=32)
    forecast, real = both_logs(read_recipe(tmp_path / "recipe.toml", open_registry(), [f'adapter.init="{init}"']))
    assert events(forecast) == events(real)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"init": "pissa", "dora": True}, '"init" = "pissa" takes a part of the weights away'),
        ({"init": "orthogonal", "r": 3}, '"init" = "orthogonal" needs even ranks, and one is 3'),
        ({"init": "orthogonal", "ranks": [{"targets": "q_proj", "r": 5}]}, "needs even ranks, and one is 5"),
    ],
)
def test_what_cannot_be_begun_with_is_refused(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        read_recipe(write_recipe(tmp_path, {"adapter": options}), open_registry())


@pytest.mark.parametrize("strategy", ["nf4", "fsdp"])
def test_where_nobody_has_the_weights_it_is_refused(tmp_path: Path, strategy: str) -> None:
    changes = {"adapter": {"init": "pissa"}, "memory": {"strategy": [{"use": strategy}]}}
    with pytest.raises(RecipeError, match=f'"init" = "pissa" takes a part of the weights away, and "{strategy}"'):
        read_recipe(write_recipe(tmp_path, changes), open_registry())


@pytest.mark.parametrize("adapter", [{"init": "pissa"}, {"init": "olora"}, {"modules_to_save": ["lm_head"]}])
def test_the_reference_is_the_model_before_training(tmp_path: Path, adapter: dict[str, object]) -> None:
    """Of DPO, which begins with a loss of log 2 if both are one."""
    path = write_preference_recipe(tmp_path, {"adapter": {"targets": "all-linear", **adapter}})
    train_run(path, tmp_path / "run", 'objective={use="dpo", reference="adapter-off"}', "train.steps=3")
    found = losses(tmp_path / "run")
    assert found[0] == pytest.approx(math.log(2), abs=1e-4)
    assert found[-1] < found[0] - 0.01


def test_what_has_no_components_is_refused(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(write_tiny_model(tmp_path))
    with pytest.raises(ModelError, match=r"r: a matrix of \[32, 32\] has no 40 components"):
        LORA.attach(LoraOptions(init="pissa", r=40, targets=("q_proj",)), model)
    quantised: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    quantised.is_quantized = True
    with pytest.raises(ModelError, match=r'init: "olora" changes the weights of the model, and these are quantised'):
        LORA.attach(LoraOptions(init="olora"), quantised)
    config = MixtralConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        num_local_experts=2,
    )
    with pytest.raises(ModelError, match=r"init: .*experts.* is no linear layer"):
        LORA.attach(LoraOptions(init="pissa", targets="all-linear"), MixtralForCausalLM(config))
