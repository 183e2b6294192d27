"""Forecasts of checkpoints that are quantised: weights as they are stored, or no number at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from fitune import ModelError
from fitune.compose.model import base_model, built, planned
from fitune.memory.cards.cards import find_card
from fitune.memory.forecast import forecast, margin_of
from fitune.memory.trace.load import DEQUANTISED
from fitune.memory.trace.meta import tensors_of
from fitune.memory.trace.tracer import Tracer
from fitune.plugin.recipe import Recipe
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry
from fitune_plugins.loaders.quantization_methods import METHODS
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


def _taken(make: Callable[..., Tensor], *given: Tensor) -> int:
    """Bytes that are taken at most beside the result, what is given included."""
    tracer = Tracer(None, scratch={}, cublas_workspace=1, on_card=lambda tensor: tensor.device.type == "cpu")
    tracer.enter("load", 0)
    for tensor in given:
        tracer.adopt(tensor)
    with tracer:
        result = make(*given).nbytes
    now = most = 0
    for number in tracer.log.events:
        now += tracer.log.blocks[abs(number) - 1].bytes * (1 if number > 0 else -1)
        most = max(most, now)
    return most - result


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_dequantising_takes_what_is_said(dtype: torch.dtype) -> None:
    """By transformers' own functions, beside what they make."""
    stored, scales = torch.zeros(256, 512, dtype=torch.float8_e4m3fn), torch.ones(2, 4)
    one: Any = Fp8Dequantize(None)._dequantize_one
    fp8 = _taken(lambda *given: one(*given, dtype), stored, scales)
    assert METHODS["fp8"].reading[dtype == torch.float32] * stored.numel() == pytest.approx(fp8, rel=0.01)
    blocks, scales = (torch.zeros(4, 256, *rest, dtype=torch.uint8) for rest in ((16, 16), (16,)))
    mxfp4 = _taken(lambda *given: convert_moe_packed_tensors(*given, dtype=dtype), blocks, scales)
    assert METHODS["mxfp4"].reading[dtype == torch.float32] * 2 * blocks.numel() == pytest.approx(mxfp4, rel=0.01)


@pytest.mark.parametrize(("kind", "share"), [("fp8", 9), ("mxfp4", 3.66), ("4bit", 0)])
def test_what_is_dequantised_as_it_is_read_is_forecast(tmp_path: Path, kind: str, share: float) -> None:
    """For the largest of its tensors, behind all weights: neither the embeddings nor the head is one of them."""
    recipe = _read(tmp_path / "recipe", kind, "model.dtype='bfloat16'")
    blocks = forecast(recipe, shapes(recipe), A10G).trace.log.blocks
    model = built(recipe)
    ends = ("embed_tokens.weight", "lm_head.weight")
    largest = max(p.numel() for name, p in model.named_parameters() if not name.endswith(ends))
    found = [block.bytes for block in blocks if block.operation == DEQUANTISED]
    assert found == ([int(share * largest)] if share else [])


@pytest.mark.parametrize(("kind", "alone"), [("fp8", "1"), ("4bit", None)])
def test_what_is_dequantised_is_read_one_by_one(
    tmp_path: Path, kind: str, alone: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By threads, quantised weights would lie on a card long before they become plain ones."""
    monkeypatch.delenv("HF_DEACTIVATE_ASYNC_LOAD", raising=False)
    recipe, seen = _read(tmp_path / "recipe", kind), list[str | None]()
    load: Any = AutoModelForCausalLM.from_pretrained

    def watched(*given: Any, **named: Any) -> Any:
        seen.append(os.environ.get("HF_DEACTIVATE_ASYNC_LOAD"))
        return load(*given, **named)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", watched)
    base_model(recipe, planned(recipe, gpu=False)[1], torch.device("cpu"))
    assert seen == [alone]
    assert "HF_DEACTIVATE_ASYNC_LOAD" not in os.environ
