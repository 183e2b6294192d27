"""LoRA that begins with what four bits have taken: nearer to the weights, plain when saved, and gone on with."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from peft import PeftModel
from peft.utils import loftq_utils
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from fitune import ModelError, RecipeError
from fitune.compose.model import adapted, base_model, built, loaded, planned
from fitune.compose.parts import Parts
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry, write_recipe
from fitune.train.loop import train
from fitune.train.save import save
from support.objectives import write_preference_recipe
from support.resuming import go, stop, weights
from support.tiny import parts_of
from support.tiny import train as train_run

IDS = torch.arange(1, 40)[None]
NF4: dict[str, Any] = {"memory": {"strategy": [{"use": "nf4"}]}}
LOFTQ = {**NF4, "adapter": {"init": "loftq", "targets": "all-linear", "r": 4, "alpha": 12}}


def _logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=IDS).logits
    return found


def _adapters(parts: Parts, recipe: Path) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Of each layer the weight, what is left of it in four bits, and what the adapter adds."""
    whole = load_file(recipe.parent / "model" / "model.safetensors")
    inner: Any = parts.run.model.get_base_model()  # type: ignore[operator]
    for name, layer in inner.named_modules():
        if hasattr(layer, "lora_A") and layer.lora_A:
            kept: Any = layer.get_base_layer().weight
            left = dequantize_4bit(kept.data, kept.quant_state)
            product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            yield whole[f"{name}.weight"], left, layer.scaling["default"] * product.detach()


def test_it_begins_with_the_best_of_that_rank(tmp_path: Path) -> None:
    """As peft's own decomposition has it, but for the scale."""
    recipe = write_recipe(tmp_path, LOFTQ)
    found, decompose = list(_adapters(parts_of(recipe), recipe)), cast(Any, loftq_utils)._low_rank_decomposition
    assert len(found) == 14
    for whole, left, added in found:
        taken, best = whole - left, decompose(whole - left, reduced_rank=4)
        least = (taken - best["L"] @ best["R"]).norm()
        assert (taken - added).norm() < 1.001 * least < 0.9 * taken.norm()


def test_the_model_is_nearer_to_what_it_was(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, LOFTQ)
    before = _logits(AutoModelForCausalLM.from_pretrained(recipe.parent / "model"))
    near, far = (_logits(parts_of(recipe, f'adapter.init="{init}"').run.model) for init in ("loftq", "default"))
    assert (near - before).norm() < 0.9 * (far - before).norm()


def test_plain_peft_loads_it_on_four_bits(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, LOFTQ)
    parts = parts_of(recipe, "train.learning_rate=0.01")
    list(train(parts))
    directory = save(parts)
    read = read_recipe(recipe, open_registry())
    strategies, plan = planned(read, gpu=False)
    base = loaded(strategies, base_model(read, plan, torch.device("cpu")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        again = PeftModel.from_pretrained(base, str(directory))
    torch.testing.assert_close(_logits(again), _logits(parts.run.model), rtol=1e-3, atol=1e-3)


def test_a_run_that_is_stopped_goes_on_to_the_bit(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe", {**LOFTQ, "deterministic": True})
    train_run(recipe, tmp_path / "whole", "train.steps=4")
    stop(recipe, tmp_path / "run", 2, "train.steps=4")
    go(tmp_path / "run")
    assert all(map(torch.equal, weights(tmp_path / "whole"), weights(tmp_path / "run")))


def test_a_forecast_needs_no_weights(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, LOFTQ)
    read = read_recipe(recipe, open_registry())
    (recipe.parent / "model" / "model.safetensors").unlink()
    strategies, _ = planned(read, gpu=True)
    model = adapted(read, strategies, built(read))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) > 0
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"adapter": {"init": "loftq"}}, '"loftq" gives back what four bits take of weights, and none are quantised'),
        ({**NF4, "adapter": {"init": "loftq", "dora": True}}, '"init" = "loftq" changes where weights point'),
        (
            {"adapter": {"init": "loftq"}, "memory": {"strategy": [{"use": "nf4"}, {"use": "fsdp"}]}},
            'and "fsdp" reads them in one process alone',
        ),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        read_recipe(write_recipe(tmp_path, changes), open_registry())


def test_its_reference_is_prepared(tmp_path: Path) -> None:
    path = write_preference_recipe(tmp_path, LOFTQ)
    with pytest.raises(RecipeError, match=r'"loftq" begins with an adapter that counts: .* Set reference = "prepared"'):
        read_recipe(path, open_registry(), ['objective={use="dpo"}'])
    assert read_recipe(path, open_registry(), ['objective={use="dpo", reference="prepared"}'])


def test_weights_that_are_not_there_are_told(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, LOFTQ)
    with pytest.raises(ModelError, match=r"r: a matrix of \[32, 32\] has no 40 components"):
        parts_of(recipe, "adapter.r=40")
    file = recipe.parent / "model" / "model.safetensors"
    tensors = load_file(file)
    torch.save(tensors, file.with_name("pytorch_model.bin"))
    file.unlink()
    with pytest.raises(ModelError, match=r'"loftq" reads weights again, and finds no model\.layers\..* in safetensors'):
        parts_of(recipe)
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    save_file({name.removeprefix("model."): value for name, value in tensors.items()}, file, metadata={"format": "pt"})
    file.with_name("pytorch_model.bin").unlink()
    assert parts_of(recipe).run.trainable  # as old files of a decoder alone name them
