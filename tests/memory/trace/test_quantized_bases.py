"""Forecasts of checkpoints that are quantised: weights as they are stored, or no number at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fitune import ModelError
from fitune.compose.model import base_model, built, planned
from fitune.memory.cards.cards import find_card
from fitune.memory.forecast import forecast, margin_of
from fitune.memory.trace.meta import tensors_of
from fitune.plugin.recipe import Recipe
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry
from support.quantized import write
from support.traces import shapes

A10G = find_card("a10g")


def _read(directory: Path, kind: str, *overrides: str) -> Recipe:
    return read_recipe(write(directory, kind), open_registry(), overrides)


def _bytes(model: torch.nn.Module) -> int:
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors_of(model)}
    return sum(storages.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["4bit", "fp4", "double", "8bit", "fp8", "mxfp4"])
def test_a_model_without_values_takes_what_the_loaded_one_takes(tmp_path: Path, kind: str, dtype: str) -> None:
    recipe = _read(tmp_path / "recipe", kind, f"model.dtype='{dtype}'")
    loaded = base_model(recipe, planned(recipe, gpu=False)[1], torch.device("cpu"))
    # 16 bytes a table of levels, and the CPU's own copies, are all that may differ
    assert _bytes(built(recipe)) == pytest.approx(_bytes(loaded), rel=0.01)
    assert [p.shape for p in built(recipe).parameters()] == [p.shape for p in loaded.parameters()]
    assert [p.dtype for p in built(recipe).parameters()] == [p.dtype for p in loaded.parameters()]


@pytest.mark.parametrize(("kind", "share"), [("4bit", 0.5625), ("8bit", 1)])
def test_linear_layers_are_forecast_as_they_are_stored(tmp_path: Path, kind: str, share: float) -> None:
    recipe = _read(tmp_path / "recipe", kind)
    model: Any = built(recipe)
    layer = model.model.layers[0].mlp.gate_proj
    weights = layer.in_features * layer.out_features
    scales = 4 * layer.out_features if kind == "8bit" else 0
    tables = 16 * 4 if kind == "4bit" else 0
    assert _bytes(layer) == share * weights + scales + tables


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_the_run_is_forecast_with_the_margin_of_a_quantised_one(tmp_path: Path, kind: str) -> None:
    recipe = _read(tmp_path / "recipe", kind, "memory.strategy=[{use='expandable-segments'}]")
    found = forecast(recipe, shapes(recipe), A10G)
    assert found.trace.plan.quantized
    assert found.margin == margin_of(found.reserved, expandable=True, quantized=True)
    assert found.ledger.peak > 0


@pytest.mark.parametrize("kind", ["aqlm", "vptq", "of-tomorrow"])
def test_what_cannot_be_forecast_is_said_and_no_number_given(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fitune_plugins.loaders.quantized._is_there", lambda module: True)
    recipe = _read(tmp_path / "recipe", kind)
    with pytest.raises(ModelError, match="cannot be forecast: its layers are compiled code"):
        forecast(recipe, shapes(recipe), A10G)


@pytest.mark.parametrize("kind", ["gptq", "awq", "aqlm"])
def test_a_package_that_is_missing_is_named(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fitune_plugins.loaders.quantized._is_there", lambda module: True)
    recipe = _read(tmp_path / "recipe", kind)
    monkeypatch.setattr("fitune_plugins.loaders.quantized._is_there", lambda module: False)
    with pytest.raises(ModelError, match=r"cannot be forecast: its quantiser needs the package \w+, .* pip install"):
        built(recipe)
