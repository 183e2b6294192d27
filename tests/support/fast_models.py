"""Tiny models whose layers `fast-layers` computes, and what transformers and peft compute of the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from fitune import Batch, NoOptions, Plan
from fitune.compose.loss import plain_loss
from fitune_plugins.speed.fast_layers import FastLayers
from support.architectures import CONFIGS
from support.blows import join
from support.tiny import assert_close, loss_and_gradients, make_batch, with_lora

BATCH = make_batch([(list(range(5, 25)), list(range(5, 25))), (list(range(30, 45)), list(range(30, 45)))])
"""Two rows, one padded."""


def plain_model(
    kind: str, *targets: str, dropout: float = 0.0, r: int = 4, attention: str | None = None, **changed: Any
) -> Any:
    """A model with random adapters, as peft makes it, in training mode; `changed` are keys of its configuration."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**CONFIGS[kind], **changed})
    named = {} if attention is None else {"attn_implementation": attention}
    model = AutoModelForCausalLM.from_config(config, **named)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # which begin as zeros
            torch.nn.init.normal_(parameter, std=0.5)
    return with_lora(model.train(), *(targets or ("all-linear",)), dropout=dropout, r=r)


def fast(model: Any, *, told: bool = False) -> Any:
    """The same model, computed in few kernels; unless something is told, all of its layers."""
    strategy = FastLayers(NoOptions())
    strategy.plan(Plan(gpu=True))
    prepared = strategy.prepare(model)
    assert bool(strategy.told(model)) == told
    return prepared


def is_fast(layer: Any) -> bool:
    """Whether a layer's `forward` is another's than transformers'."""
    return type(layer.__dict__.get("forward")).__name__ == "FastLayer"


def seeded(model: Any, batch: Batch = BATCH) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients under the same random numbers each time."""
    torch.manual_seed(1)
    return loss_and_gradients(plain_loss, model, batch)


def assert_same(found: tuple[Tensor, list[Tensor]], wanted: tuple[Tensor, list[Tensor]]) -> None:
    """Losses and gradients of models in float64 are equal but for what the loss' float32 rounds."""
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-6, atol=0)
    assert_close(found[1], wanted[1], relative=1e-5)


def must_be_the_same(model: Any, batch: Batch = BATCH) -> None:
    """Hold a model to itself: plain first, then fast."""
    wanted = seeded(model.double(), batch)
    assert_same(seeded(fast(model), batch), wanted)


def join_with_kernels(board: memoryview, rank: int, processes: int, port: int) -> None:
    """Be one of several processes in which `fast-layers` works without a GPU: its kernels are formulas there."""
    join(board, rank, processes, port)
    own = FastLayers.plan

    def plan(self: FastLayers, plan: Plan) -> Plan:
        own(self, plan)
        self.gpu = True
        return plan

    FastLayers.plan = plan  # type: ignore[method-assign]
