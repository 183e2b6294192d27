"""bitsandbytes' CUDA kernels in runs: `nf4` and `adamw-8bit`. Skipped, visibly, where there is no CUDA device."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit
from bitsandbytes.optim.adamw import PagedAdamW8bit
from safetensors.torch import load_file, save_file

from fitune.compose.loss_scaling import INITIAL_SCALE
from fitune.plugin.model import unwrapped
from fitune.testing import write_recipe
from fitune.train.loop import train as steps_of
from support.tiny import assert_close, gradients, losses, metrics, parts_of, train
from support.wide_model import write_wide_model

pytestmark = pytest.mark.gpu

ALL_LINEAR = 'adapter.targets="all-linear"'


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe in float32, on that model."""
    path = write_recipe(tmp_path / "recipe")
    write_wide_model(path.parent / "model")
    return path


def _write_dequantized(recipe: Path, strategy: str) -> Path:
    model = unwrapped(parts_of(recipe, strategy).run.model)
    again = write_recipe(recipe.parent.parent / "dequantized")
    write_wide_model(again.parent / "model")
    file = again.parent / "model" / "model.safetensors"
    weights = load_file(file)
    for name, module in model.named_modules():
        if isinstance(module, Linear4bit):
            weight: Any = module.weight
            assert weight.device.type == "cuda"
            key = f"{name.removesuffix('.base_layer')}.weight"
            weights[key] = dequantize_4bit(weight.data, weight.quant_state).cpu().contiguous()
    save_file(weights, file, metadata={"format": "pt"})
    return again


@pytest.mark.parametrize("double", ["false", "true"])
def test_gradients_on_nf4_are_those_of_the_dequantized_model(recipe: Path, double: str) -> None:
    strategy = f'memory.strategy=[{{use="nf4", double_quantization={double}}}]'
    found = gradients(recipe, strategy, ALL_LINEAR)
    expected = gradients(_write_dequantized(recipe, strategy), ALL_LINEAR)
    assert len(found) == 3
    for step, other in zip(found, expected, strict=True):
        assert_close(step, other, relative=2e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("optimizer", ["", ', {use="adamw-8bit"}', ', {use="adamw-8bit", paged=true}'])
def test_a_run_on_nf4(recipe: Path, tmp_path: Path, dtype: str, optimizer: str) -> None:
    """In the types that GPUs are trained in, beside the strategies that go with it."""
    others = '{use="chunked-loss", tokens=64}, {use="gradient-checkpointing"}, {use="nf4", double_quantization=true}'
    overrides = [f"memory.strategy=[{others}{optimizer}]", ALL_LINEAR, "adapter.r=64", "train.steps=20"]
    run = train(recipe, tmp_path / "run", f'model.dtype="{dtype}"', *overrides)
    assert run.device.startswith("cuda")
    found = losses(tmp_path / "run")
    assert found[-1] < 0.7 * found[0]
    plain = [override for override in overrides if "memory" not in override]
    train(recipe, tmp_path / "plain", 'memory.strategy=[{use="nf4", double_quantization=true}]', *plain)
    assert found == pytest.approx(losses(tmp_path / "plain"), rel=0.1)
    if dtype == "float16":
        assert metrics(tmp_path / "run")[0]["loss_scale"] == INITIAL_SCALE


@pytest.mark.parametrize("paged", ["false", "true"])
def test_full_fine_tuning_with_8_bit_state(recipe: Path, tmp_path: Path, paged: str) -> None:
    strategy = f'memory.strategy=[{{use="adamw-8bit", paged={paged}}}]'
    overrides = ['adapter={use="none"}', "train.steps=8", "train.learning_rate=1e-3"]
    parts = parts_of(recipe, strategy, *overrides)
    list(steps_of(parts))
    optimizer, masters = parts.step.optimizer, parts.step.trainables.masters
    assert isinstance(optimizer, PagedAdamW8bit) is (paged == "true")
    assert {p.device.type for p in masters} == {"cuda"}
    found = {p.numel() >= 4096: optimizer.state[p]["state1"].dtype for p in masters}
    assert found == {True: torch.uint8, False: torch.float32}
    on_host = {p.numel() >= 1e5: getattr(optimizer.state[p]["state1"], "is_paged", False) for p in masters}
    assert on_host == {True: paged == "true", False: False}
    train(recipe, tmp_path / "run", strategy, *overrides)
    train(recipe, tmp_path / "plain", *overrides)
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "plain"), rel=0.05)


def test_nf4_takes_the_memory_of_4_bits(recipe: Path) -> None:
    """Half a byte a weight, and for 64 of them a float32, or with double quantisation a byte and a little."""

    def allocated(*overrides: str) -> int:
        gc.collect()  # what is left of the model before, which its cycles keep
        before = torch.cuda.memory_allocated()
        parts = parts_of(recipe, 'model.dtype="bfloat16"', *overrides)
        taken = torch.cuda.memory_allocated() - before
        del parts
        return taken

    plain = allocated()
    weights = load_file(recipe.parent / "model" / "model.safetensors")
    linear = sum(weight.numel() for name, weight in weights.items() if "_proj" in name)
    small = 64 * 1024  # the allocator's rounding, and tables
    assert plain - allocated('memory.strategy=[{use="nf4"}]') == pytest.approx(linear * (2 - 0.5625), abs=small)
    double = allocated('memory.strategy=[{use="nf4", double_quantization=true}]')
    assert plain - double == pytest.approx(linear * (2 - 0.516), abs=small)
