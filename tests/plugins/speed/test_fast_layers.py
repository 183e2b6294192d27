"""`fast-layers` computes what transformers' layers with peft's adapters compute, family by family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fitune import NoOptions, Plan
from fitune.compose.loss import plain_loss
from fitune_plugins.speed.fast_layers import MODELS, FastLayers
from support.architectures import CONFIGS
from support.tiny import assert_close, loss_and_gradients, make_batch, with_lora

BATCH = make_batch([(list(range(5, 25)), list(range(5, 25))), (list(range(30, 45)), list(range(30, 45)))])
KINDS = [kind for kind in MODELS if kind in CONFIGS]


def _model(kind: str, *targets: str, dropout: float = 0.0, r: int = 4, **changed: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**CONFIGS[kind], **changed}))
    return with_lora(model.train(), *(targets or ("all-linear",)), dropout=dropout, r=r)


def _fast(model: Any) -> Any:
    strategy = FastLayers(NoOptions())
    strategy.plan(Plan(gpu=True))
    prepared = strategy.prepare(model)
    assert not strategy.told(model)
    return prepared


def _seeded(model: Any, batch: Any = BATCH) -> tuple[torch.Tensor, list[torch.Tensor]]:
    torch.manual_seed(1)
    return loss_and_gradients(plain_loss, model, batch)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_the_same(kind: str) -> None:
    model = _model(kind).double()
    loss, grads = _seeded(model)
    found, fast_grads = _seeded(_fast(model))
    torch.testing.assert_close(found, loss, rtol=1e-6, atol=0)
    assert_close(fast_grads, grads, relative=1e-5)


def test_every_family_is_tested() -> None:
    assert sorted(KINDS) == sorted({*MODELS} - {"gemma3"})  # whose text model is gemma3_text


@pytest.mark.parametrize(
    "targets", [("q_proj", "v_proj"), ("k_proj",), ("down_proj", "gate_proj"), ("o_proj", "up_proj")]
)
@pytest.mark.parametrize("r", [1, 6, 24])
def test_any_targets_and_ranks(targets: tuple[str, ...], r: int) -> None:
    model = _model("qwen2", *targets, r=r).double()
    loss, grads = _seeded(model)
    found, fast_grads = _seeded(_fast(model))
    torch.testing.assert_close(found, loss, rtol=1e-6, atol=0)
    assert_close(fast_grads, grads, relative=1e-5)
