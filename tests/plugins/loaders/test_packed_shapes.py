"""GPTQ and AWQ: what a layer holds by the formats' own definitions, and what a step keeps of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fitune import ModelError
from fitune.compose.model import built
from fitune.memory.cards.cards import find_card
from fitune.memory.forecast import Forecast, forecast
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry
from fitune_plugins.loaders.packed_shapes import PackedLinear
from fitune_plugins.loaders.quantized import KEY, arguments_for
from support.quantized import say, write
from support.traces import shapes


def _layer(
    inputs: int, outputs: int, *, along_outputs: bool, bits: int = 4, group: int = 128, bias: bool = False
) -> Any:
    plain = nn.Linear(inputs, outputs, bias=bias, device="meta")
    return PackedLinear(plain, bits=bits, group=group, along_outputs=along_outputs)


def _held(layer: nn.Module) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    return {name: (tuple(t.shape), t.dtype) for name, t in layer.named_buffers() if not name.startswith("shifts")}


def test_a_layer_holds_what_published_checkpoints_hold() -> None:
    """As in TheBloke/Llama-2-7B-GPTQ and -AWQ, `model.layers.0.mlp.down_proj`: 11008 inputs, 4096 outputs."""
    assert _held(_layer(11008, 4096, along_outputs=False)) == {
        "qweight": ((1376, 4096), torch.int32),
        "qzeros": ((86, 512), torch.int32),
        "scales": ((86, 4096), torch.float16),
        "g_idx": ((11008,), torch.int32),
    }
    assert _held(_layer(11008, 4096, along_outputs=True)) == {
        "qweight": ((11008, 512), torch.int32),
        "qzeros": ((86, 512), torch.int32),
        "scales": ((86, 4096), torch.float16),
    }


@pytest.mark.parametrize(("bits", "rows"), [(2, 16), (3, 24), (4, 32), (8, 64)])
def test_other_widths_one_group_and_a_bias(bits: int, rows: int) -> None:
    """As layers of GPTQModel 7.7 with these arguments were seen to hold."""
    assert _held(_layer(256, 512, along_outputs=False, bits=bits, group=-1, bias=True)) == {
        "qweight": ((rows, 512), torch.int32),
        "qzeros": ((1, 512 * bits // 32), torch.int32),
        "scales": ((1, 512), torch.float16),
        "g_idx": ((256,), torch.int32),
        "bias": ((512,), torch.float16),
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gptq_keeps_the_dequantised_weight_and_awq_nothing(dtype: torch.dtype) -> None:
    """As `TorchLinear` of GPTQModel 7.7 does on the CPU, and as `AwqGemmFn` and `AwqGemmTritonFn` save."""
    for along_outputs, wanted in ((False, [((256, 512), dtype)]), (True, [])):
        kept: list[tuple[tuple[int, ...], torch.dtype]] = []

        def pack(tensor: Tensor, kept: list[Any] = kept) -> Tensor:
            kept.append((tuple(tensor.shape), tensor.dtype))
            return tensor

        inputs = torch.empty(2, 3, 256, dtype=dtype, device="meta", requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            found: Tensor = _layer(256, 512, along_outputs=along_outputs, bias=True)(inputs)
        assert (tuple(found.shape), found.dtype) == ((2, 3, 512), dtype)
        assert kept == wanted
        found.sum().backward()
        assert inputs.grad is not None
        assert (inputs.grad.shape, inputs.grad.dtype) == (inputs.shape, dtype)


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the packages were installed: a forecast needs none of their code."""
    monkeypatch.setattr("fitune_plugins.loaders.quantized._is_there", lambda module: True)


def _forecast(directory: Path, kind: str, *overrides: str, **values: object) -> Forecast:
    path = write(directory, kind)
    if values:
        say(path.parent / "model", quant_method=kind, **values)
    recipe = read_recipe(path, open_registry(), overrides)
    return forecast(recipe, shapes(recipe), find_card("a10g"))


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize("kind", ["gptq", "awq"])
def test_a_run_is_forecast_with_its_layers_as_they_are_stored(tmp_path: Path, kind: str) -> None:
    found = _forecast(tmp_path, kind)
    weights = [block for block in found.trace.log.blocks if block.kind == "weights" and block.dtype == "int32"]
    layers = 2 * 7
    assert len(weights) == layers * (5 if kind == "gptq" else 2)
    assert {block.dtype for block in found.trace.log.blocks if block.kind == "adapter"} == {"float32"}
    assert found.trace.plan.quantized
    made = [b for b in found.trace.log.blocks if b.shape == (64, 32) and b.dtype == "float16" and b.step == 2]
    assert len(made) >= (2 if kind == "gptq" else 4), (
        "down_proj's weight, dequantised: for AWQ in the backward pass too"
    )


@pytest.mark.usefixtures("there")
def test_layers_that_are_not_quantised_stay_plain(tmp_path: Path) -> None:
    path = write(tmp_path, "awq")
    say(path.parent / "model", quant_method="awq", bits=4, group_size=32, modules_to_not_convert=["up_proj"])
    model: Any = built(read_recipe(path, open_registry(), ()))
    assert isinstance(model.model.layers[0].self_attn.q_proj, PackedLinear)
    assert type(model.model.layers[0].mlp.up_proj) is type(model.lm_head) is nn.Linear
    names = [["self_attn.q_proj"], ["mlp.up_proj", "mlp.gate_proj"]]
    say(path.parent / "model", quant_method="gptq", bits=4, group_size=32, modules_in_block_to_quantize=names)
    model = built(read_recipe(path, open_registry(), ()))
    packed = sorted(name for name, module in model.named_modules() if isinstance(module, PackedLinear))
    assert packed == [
        f"model.layers.{layer}.{name}"
        for layer in range(2)
        for name in ("mlp.gate_proj", "mlp.up_proj", "self_attn.q_proj")
    ]


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize(
    ("kind", "values", "what"),
    [
        ("gptq", {"bits": 4, "checkpoint_format": "marlin"}, 'GPTQ cannot be forecast: 4 bits, format "marlin"'),
        ("gptq", {"bits": 4, "dynamic": {"-:.*down": {}}}, "GPTQ cannot be forecast: layers of several kinds"),
        ("awq", {"bits": 4, "version": "gemv"}, 'AWQ cannot be forecast: 4 bits, format "gemv"'),
        ("awq", {"bits": 8}, "AWQ cannot be forecast: 8 bits"),
    ],
)
def test_a_format_that_is_not_known_is_said(tmp_path: Path, kind: str, values: dict[str, object], what: str) -> None:
    with pytest.raises(ModelError, match=what):
        _forecast(tmp_path, kind, **values)


@pytest.mark.parametrize("kind", ["gptq", "awq"])
def test_layers_with_a_gradient_are_asked_for(tmp_path: Path, kind: str) -> None:
    """Left to itself, GPTQModel takes its fastest kernels, which have none; a kernel that a checkpoint names stays."""
    model = write(tmp_path, kind).parent / "model"
    asked: Any = arguments_for(str(model), {})[KEY]
    assert asked.backend == "auto_trainable"
    values = json.loads((model / "config.json").read_text(encoding="utf-8"))[KEY]
    say(model, **{**values, "backend": "marlin"})
    assert arguments_for(str(model), {}) == {}
