"""Modules that train whole beside a low-rank adapter: apart or tied, saved, loaded by peft, merged, and forecast."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from fitune import ModelError
from fitune.recipe.reader import read_recipe
from fitune.testing import assert_adapter, open_registry, write_tiny_model
from fitune.train.loop import train
from fitune.train.save import save
from fitune_plugins.adapters.lora import LoraOptions, ft_adapters
from support.after_runs import ft
from support.architectures import recipe_of
from support.nothing import nothing
from support.real_steps import both_logs, events
from support.tiny import losses, parts_of
from support.tiny import train as train_run

IDS = torch.arange(1, 40)[None]
(LORA,) = ft_adapters()
NAMES = {"embeddings": '["embed_tokens"]', "head": '["lm_head"]', "both": '["embed_tokens", "lm_head"]'}


def _logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=IDS).logits
    return found


@pytest.fixture(params=[False, True], ids=["apart", "tied"])
def recipe(request: pytest.FixtureRequest, recipe_path: Path) -> Path:
    """A recipe of a model whose embeddings are its head, or not."""
    place = recipe_path.parent / "model"
    if request.param:
        model: Any = AutoModelForCausalLM.from_pretrained(place)
        model.config.tie_word_embeddings = True
        model.tie_weights()
        model.save_pretrained(place)
    return recipe_path


def _is_tied(model: Any) -> bool:
    return model.get_input_embeddings().weight is model.get_output_embeddings().weight


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_it_trains_and_plain_peft_loads_it(recipe: Path, names: str) -> None:
    parts = parts_of(recipe, f"adapter.modules_to_save={names}", "train.learning_rate=0.02")
    base = AutoModelForCausalLM.from_pretrained(recipe.parent / "model")
    tied, inner = _is_tied(base), parts.run.model.get_base_model()  # type: ignore[operator]
    trained = [n for n, p in parts.run.model.named_parameters() if p.requires_grad and "lora_" not in n]
    assert len(trained) == (1 if tied else names.count(",") + 1)
    assert any("trains whole" in line for line in parts.run.told)
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    list(train(parts))
    assert _is_tied(inner) == tied
    after = _logits(parts.run.model)
    directory = save(parts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        loaded = PeftModel.from_pretrained(base, str(directory))
    torch.testing.assert_close(_logits(loaded), after)
    whole = [name for name in load_file(directory / "adapter_model.safetensors") if "lora_" not in name]
    assert len(whole) == (2 if tied else len(trained))
    moved = inner.get_input_embeddings() if "embed" in names or tied else inner.get_output_embeddings()
    name = "model.embed_tokens.weight" if "embed" in names or tied else "lm_head.weight"
    assert not torch.equal(moved.weight, before[name])
    assert LORA.off is not None
    with LORA.off(parts.run.model):
        plain = AutoModelForCausalLM.from_pretrained(recipe.parent / "model")
        torch.testing.assert_close(_logits(parts.run.model), _logits(plain))


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_it_is_merged(recipe: Path, tmp_path: Path, names: str) -> None:
    run = tmp_path / "run"
    train_run(recipe, run, f"adapter.modules_to_save={names}", "train.learning_rate=0.02")
    ft("merge", run, "--to", tmp_path / "merged")  # which compares logits
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert _is_tied(merged) == _is_tied(AutoModelForCausalLM.from_pretrained(recipe.parent / "model"))


def test_contract(tmp_path: Path) -> None:
    assert_adapter(nothing(), "lora", tmp_path, {"modules_to_save": ["embed_tokens", "lm_head"]})


@pytest.mark.parametrize("strategy", ["chunked-loss", "gradient-checkpointing", "fused-lora", "lion"])
def test_strategies_know_it(recipe_path: Path, tmp_path: Path, strategy: str) -> None:
    how = [f"adapter.modules_to_save={NAMES['both']}", "train.steps=4", "train.learning_rate=0.005"]
    train_run(recipe_path, tmp_path / "run", *how, f'memory.strategy=[{{use="{strategy}"}}]')
    train_run(recipe_path, tmp_path / "plain", *how)
    found, expected = losses(tmp_path / "run"), losses(tmp_path / "plain")
    assert found == pytest.approx(expected, rel=0.2 if strategy == "lion" else 1e-4)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("strategy", ["", '{use="chunked-loss"}'])
def test_what_is_traced_is_what_is_done(tmp_path: Path, tied: bool, strategy: str) -> None:
    recipe_of(tmp_path, "llama", length=32, changes={"tie_word_embeddings": tied})
    overrides = [f"adapter.modules_to_save={NAMES['both']}", f"memory.strategy=[{strategy}]"]
    forecast, real = both_logs(read_recipe(tmp_path / "recipe.toml", open_registry(), overrides))
    assert events(forecast) == events(real)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"modules_to_save": ("embed_token",)}, 'the model has no module "embed_token". Did you mean "embed_tokens"?'),
        ({"modules_to_save": ("act_fn",)}, 'act_fn" has no weights'),
        ({"modules_to_save": ("lm_head",), "targets": ("lm_head",)}, '"lm_head" trains whole, by modules_to_save'),
        ({"modules_to_save": ("self_attn",)}, r'q_proj" trains whole, by modules_to_save'),
    ],
)
def test_what_cannot_train_is_refused(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(write_tiny_model(tmp_path))
    with pytest.raises(ModelError) as caught:
        LORA.attach(LoraOptions(**options), model)
    assert said in caught.value.message


def test_host_embeddings_leaves_those_that_train(recipe_path: Path) -> None:
    with pytest.raises(ModelError, match="host-embeddings"):
        parts_of(
            recipe_path, f"adapter.modules_to_save={NAMES['embeddings']}", 'memory.strategy=[{use="host-embeddings"}]'
        )
