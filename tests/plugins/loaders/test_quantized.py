"""Checkpoints that are quantised already: they train, go on, and are refused in words where that cannot be."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import tomli
import tomli_w
import torch
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from safetensors.torch import load_file

import fitune
from fitune import ModelError, RecipeError
from fitune.compose.model import planned
from fitune.errors import Interrupted
from fitune.plugin.model import unwrapped
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry
from fitune.train.run import run
from fitune_plugins.loaders.quantization_methods import METHODS, method_of
from fitune_plugins.loaders.quantized import stored, values_in
from support.quantized import held_out, say, write
from support.resuming import Stopper
from support.tiny import losses, parts_of

NEEDS = {
    "gptq": [("optimum", "optimum"), ("gptqmodel", "gptqmodel")],
    "awq": [("gptqmodel", "gptqmodel")],
    "compressed-tensors": [("compressed_tensors", "compressed-tensors")],
    "quanto": [("optimum.quanto", "optimum-quanto")],
}


def _train(recipe: Path, out: Path, *overrides: str) -> list[float]:
    registry = open_registry()
    out.mkdir()
    run(read_recipe(recipe, registry, [held_out(recipe), *overrides]), registry, out)
    return losses(out)


@pytest.mark.parametrize("kind", ["4bit", "8bit", "fp8"])
def test_it_learns_and_an_evaluation_changes_no_step(tmp_path: Path, kind: str) -> None:
    recipe = write(tmp_path / "recipe", kind)
    found = _train(recipe, tmp_path / "run")
    assert found[-1] < found[0] - 0.1
    assert _train(recipe, tmp_path / "other", "eval.every=1") == found


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_a_run_goes_on_to_the_bit(tmp_path: Path, kind: str) -> None:
    recipe = write(tmp_path / "recipe", kind)
    _train(recipe, tmp_path / "whole", "checkpoint.steps=3", "checkpoint.keep=9")
    checkpoint = tmp_path / "whole" / "checkpoints" / "step-3"
    assert checkpoint.is_dir()
    again = write(tmp_path / "again", kind)
    out = tmp_path / "parts"
    out.mkdir()
    registry = open_registry()
    registry.register(Stopper(after=3), "stopper")
    with pytest.raises(Interrupted):
        run(read_recipe(again, registry, [held_out(again)]), registry, out)
    fitune.run(out, registry=open_registry())
    one, other = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(("kind", "layer"), [("4bit", Linear4bit), ("8bit", Linear8bitLt)])
def test_layers_stay_quantised_and_compute_in_the_models_type(tmp_path: Path, kind: str, layer: type[Any]) -> None:
    model = unwrapped(parts_of(write(tmp_path / "recipe", kind), "model.dtype='bfloat16'").run.model)
    layers = [module for module in model.modules() if isinstance(module, layer)]
    assert len(layers) == 14
    if kind == "4bit":
        assert {one.compute_dtype for one in layers} == {torch.bfloat16}  # the checkpoint says float32
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["fp8", "mxfp4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_others_become_plain_weights_of_the_recipes_type(tmp_path: Path, kind: str, dtype: str) -> None:
    run = parts_of(write(tmp_path / "recipe", kind), f"model.dtype='{dtype}'").run
    frozen = {name: p.dtype for name, p in run.model.named_parameters() if not p.requires_grad}
    assert set(frozen.values()) == {getattr(torch, dtype)}
    assert any("quantised" in notice and dtype in notice for notice in run.plan.notices)
    assert not run.plan.quantized


@pytest.mark.parametrize("kind", ["4bit", "8bit", "gptq"])
def test_a_plan_knows_that_the_base_is_quantised(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fitune_plugins.loaders.quantized._is_there", lambda module: True)
    recipe = read_recipe(write(tmp_path / "recipe", kind), open_registry())
    plan = planned(recipe, gpu=True)[1]
    assert plan.quantized
    assert plan.stored is not None
    assert plan.stored.dequantizes
    assert plan.stored.unpacks is (kind == "gptq")


@pytest.mark.parametrize("kind", NEEDS)
def test_a_missing_package_is_told_before_a_weight_is_read(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    missing = {module for module, _ in NEEDS[kind]} | {"optimum"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in missing else find(name, *a))
    recipe = write(tmp_path / "recipe", kind)
    (recipe.parent / "model" / "model.safetensors").unlink()
    with pytest.raises(RecipeError) as caught:
        read_recipe(recipe, open_registry())
    name = METHODS[kind].name
    for (module, by), line in zip(NEEDS[kind], caught.value.lines, strict=True):
        assert f"[model] path: the checkpoint is quantised by {name}, and the package {module} is not installed" in line
        assert line.endswith(f"Install it: pip install {by}")
        assert "recipe.toml:" in line


@pytest.mark.parametrize("kind", ["4bit", "8bit", "fp8"])
def test_full_fine_tuning_is_refused_with_its_line(tmp_path: Path, kind: str) -> None:
    recipe = write(tmp_path / "recipe", kind)
    text = tomli.loads(recipe.read_text(encoding="utf-8"))
    recipe.write_text(tomli_w.dumps({**text, "adapter": {"use": "none"}}), encoding="utf-8")
    lines = recipe.read_text(encoding="utf-8").splitlines()
    line = next(number for number, text in enumerate(lines, 1) if '"none"' in text)
    with pytest.raises(RecipeError) as caught:
        read_recipe(recipe, open_registry())
    (said,) = caught.value.lines
    assert f"recipe.toml:{line}: [adapter] use" in said
    assert '"none" trains every weight, but those of the checkpoint are quantised' in said
    assert 'Name an adapter, e.g. "lora"' in said


@pytest.mark.parametrize("kind", ["4bit", "8bit", "fp8"])
def test_nf4_on_top_is_refused(tmp_path: Path, kind: str) -> None:
    recipe = write(tmp_path / "recipe", kind)
    with pytest.raises(RecipeError, match=r'"nf4" quantises, but the checkpoint is quantised already .* Remove the'):
        read_recipe(recipe, open_registry(), ['memory.strategy=[{use="nf4"}]'])


def test_another_quantiser_on_top_is_refused_by_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write(tmp_path / "recipe", "4bit")
    monkeypatch.setattr("fitune_plugins.memory.nf4.name_of_stored", lambda recipe: None)
    read = read_recipe(recipe, open_registry(), ['memory.strategy=[{use="nf4"}]'])
    with pytest.raises(ModelError, match=r"quantised already \(bitsandbytes, 4 bits\)"):
        planned(read, gpu=False)


@pytest.mark.parametrize(("kind", "told"), [("compressed-tensors", True), ("fp8", False), ("mxfp4", False)])
def test_what_unpacking_takes_is_said_where_the_forecast_leaves_it_out(tmp_path: Path, kind: str, told: bool) -> None:
    recipe = write(tmp_path / "recipe", "gptq")
    say(recipe.parent / "model", quant_method=kind)
    found = stored(None, recipe.parent / "model", "main", "bfloat16")
    assert found is not None
    assert (found.reading == 0, "what unpacking them takes on the way is not in the forecast" in found.notice) == (
        told,
        told,
    )


def test_what_says_nothing_is_plain(tmp_path: Path) -> None:
    recipe = write(tmp_path / "recipe", "gptq")
    say(recipe.parent / "model")
    plan = planned(read_recipe(recipe, open_registry()), gpu=True)[1]
    assert (plan.stored, plan.quantized) == (None, False)


def test_a_text_models_part_says_it_too() -> None:
    values = {"quant_method": "fp8"}
    assert values_in({"text_config": {"quantization_config": values}}) == values
    assert method_of({"quant_method": "bitsandbytes", "load_in_8bit": True}).rounds_inputs
    assert method_of({"quant_method": "of-tomorrow"}).name == "of-tomorrow"
    assert json.loads(json.dumps(values_in({"quantization_config": None}))) is None
