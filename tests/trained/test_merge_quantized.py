"""A run on a checkpoint that is quantised is merged into a plain model, which says what was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_dequant
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry
from fitune.train.run import run
from support.after_runs import evaluations, ft, refused
from support.quantized import BLOCK, held_out, write

KINDS = ["4bit", "fp4", "double", "8bit", "fp8", "mxfp4"]

SCALE = 8 / 4
"""alpha / r of the tiny recipe's adapter."""


@pytest.fixture(scope="module", params=KINDS)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The kind of a checkpoint, and the directory of a run on it."""
    directory = tmp_path_factory.mktemp(request.param)
    recipe = write(directory / "recipe", request.param)
    registry = open_registry()
    out = directory / "run"
    out.mkdir()
    run(read_recipe(recipe, registry, [held_out(recipe)]), registry, out)
    return request.param, out


def _by_hand(kind: str, model: Path, name: str) -> Tensor:
    """A weight of a checkpoint, dequantised, in float64."""
    stored = load_file(model / "model.safetensors")
    weight = stored[name]
    if kind == "fp8":
        scales = stored[f"{name}_scale_inv"].double()
        return weight.double() * scales.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    if kind == "mxfp4":
        return weight.double()  # experts alone are quantised, and no adapter is on them
    if kind == "8bit":
        found: Tensor = int8_vectorwise_dequant(weight, stored[name.replace("weight", "SCB")])
        return found.double()
    load: Any = AutoModelForCausalLM.from_pretrained
    loaded = load(model, dtype=torch.float32, device_map="cpu").get_parameter(name)
    dequantised: Tensor = dequantize_4bit(loaded.data, loaded.quant_state)
    return dequantised.double()


def _delta(out: Path, name: str) -> Tensor:
    saved = load_file(out / "adapter" / "adapter_model.safetensors")
    prefix = f"base_model.model.{name.removesuffix('.weight')}"
    one, other = (saved[f"{prefix}.lora_{side}.weight"].double() for side in "BA")
    return SCALE * one @ other


def test_the_merged_model_is_what_is_left_of_the_base_and_the_adapter(
    finished: tuple[str, Path], tmp_path: Path
) -> None:
    kind, out = finished
    to = tmp_path / "merged"
    ft("merge", out, "--to", to, "--dtype", "float32")
    config = json.loads((to / "config.json").read_text(encoding="utf-8"))
    assert "quantization_config" not in config
    merged = load_file(to / "model.safetensors")
    assert not [name for name in merged if "scale" in name or "absmax" in name or "SCB" in name or "blocks" in name]
    assert {weight.dtype for weight in merged.values()} == {torch.float32}
    name = "model.layers.1.self_attn.v_proj.weight"
    expected = _by_hand(kind, out.parent / "recipe" / "model", name) + _delta(out, name)
    assert _delta(out, name).abs().max() > 1e-3
    torch.testing.assert_close(merged[name].double(), expected, rtol=1e-5, atol=1e-6)


def test_its_loss_is_that_of_the_adapter_on_the_quantised_base(finished: tuple[str, Path], tmp_path: Path) -> None:
    kind, out = finished
    to = tmp_path / "merged"
    ft("merge", out, "--to", to, "--dtype", "float32")
    figures = json.loads((to / "parity.json").read_text(encoding="utf-8"))
    assert figures["wrong"] is None
    assert figures["loss_adapter"] == pytest.approx(evaluations(out)[-1]["loss"], rel=1e-4)
    if kind == "8bit":  # its layers round their inputs too: held against the same model in float32 without that
        assert figures["relative_difference"] < 0.05
        assert figures["cast_difference"] < 1e-5
        assert figures["loss_merged"] == pytest.approx(figures["loss_adapter"], abs=0.02)
    else:
        assert figures["relative_difference"] < 1e-5
        assert figures["loss_merged"] == pytest.approx(figures["loss_adapter"], rel=1e-5)
    assert abs(figures["loss_base"] - figures["loss_merged"]) > 0.05


def test_what_cannot_be_dequantised_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fitune_plugins.loaders.quantized._is_there", lambda module: True)
    recipe = write(tmp_path / "recipe", "4bit")
    registry = open_registry()
    out = tmp_path / "run"
    out.mkdir()
    run(read_recipe(recipe, registry), registry, out)
    file = recipe.parent / "model" / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}
    file.write_text(json.dumps(config), encoding="utf-8")
    said = refused("merge", out, "--to", tmp_path / "merged")
    assert "quantised by GPTQ, which cannot be dequantised here, so nothing is merged" in said
    assert not (tmp_path / "merged").exists()
