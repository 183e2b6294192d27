"""Decoder layers in few kernels on a card: as near to float64 as plain peft, and the same each time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from fitune import Batch, NoOptions, Plan
from fitune.compose.loss import plain_loss
from fitune.compose.masks import unasked
from fitune_plugins.memory.fused_cross_entropy import fused_loss
from fitune_plugins.speed.fast_layers import MODELS, FastLayers
from fitune_plugins.speed.fp8 import Fp8, Fp8Options
from support.architectures import CONFIGS
from support.tiny import with_lora

pytestmark = pytest.mark.gpu

WIDER: Mapping[str, int] = {
    "hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "num_attention_heads": 4, "num_key_value_heads": 2
}  # fmt: skip
KINDS = [kind for kind in MODELS if kind in CONFIGS]
LOSSES: dict[str, Callable[..., Tensor]] = {
    "plain": plain_loss,
    "fused": unasked(partial(fused_loss, chunk=100)),
}


def _model(kind: str, **lora: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**CONFIGS[kind], **WIDER})
    model = with_lora(AutoModelForCausalLM.from_config(config).to("cuda").train(), "all-linear", **lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data *= 0.05  # a larger one makes gradients that hang on the last digit
    return model


def _batch(model: Any, rows: int = 2, tokens: int = 131) -> Batch:
    torch.manual_seed(1)
    ids = torch.randint(0, model.config.get_text_config().vocab_size, (rows, tokens), device="cuda")
    return Batch(input_ids=ids, labels=ids.clone(), targets=rows * (tokens - 1), tokens=rows * tokens)


def _fast(model: Any) -> Any:
    strategy = FastLayers(NoOptions())
    strategy.plan(Plan(gpu=True))
    made = strategy.prepare(model)
    assert not strategy.told(made)
    return made


def _gradients(model: Any, batch: Batch, loss: Callable[..., Tensor] = plain_loss) -> list[Tensor]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return list(torch.autograd.grad(loss(model, batch), parameters))


def _error(found: list[Tensor], exact: list[Tensor]) -> float:
    off = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(found, exact, strict=True))
    return float((off / sum(float(b.double().square().sum()) for b in exact)) ** 0.5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_as_near_to_float64_as_peft_s(kind: str, loss: str) -> None:
    model = _model(kind)
    batch = _batch(model)
    exact = _gradients(copy.deepcopy(model).double(), batch)
    plain = _error(_gradients(copy.deepcopy(model).bfloat16(), batch), exact)
    fast = _error(_gradients(_fast(copy.deepcopy(model).bfloat16()), batch, LOSSES[loss]), exact)
    assert fast <= 1.2 * plain  # of a few hundred thousand numbers chance decides on some percent


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_the_same_to_the_bit_each_time(kind: str) -> None:
    model = _fast(_model(kind).bfloat16())
    batch = _batch(model)
    first = _gradients(model, batch, LOSSES["fused"])
    for _ in range(10):
        assert all(map(torch.equal, _gradients(model, batch, LOSSES["fused"]), first))


@pytest.mark.parametrize("r", [1, 6, 40, 256])
def test_any_rank(r: int) -> None:
    model = _model("qwen2", r=r)
    batch = _batch(model)
    exact = _gradients(copy.deepcopy(model).double(), batch)
    plain = _error(_gradients(copy.deepcopy(model).bfloat16(), batch), exact)
    assert _error(_gradients(_fast(copy.deepcopy(model).bfloat16()), batch), exact) <= 1.2 * plain


@pytest.mark.parametrize("layouts", ["one", "two"])
def test_fp8_is_near_and_the_same_in_both_layouts(layouts: Any) -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("no units for numbers of 8 bits")
    model = _model("llama")
    batch = _batch(model, tokens=128)
    exact = _gradients(copy.deepcopy(model).double(), batch)
    rounded = copy.deepcopy(model).bfloat16()
    strategy = Fp8(Fp8Options(layouts=layouts))
    strategy.plan(Plan(gpu=True))
    error = _error(_gradients(_fast(strategy.prepare(rounded)), batch), exact)
    assert 0.01 < error < 0.15
