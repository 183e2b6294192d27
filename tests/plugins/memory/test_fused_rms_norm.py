"""`fused-rms-norm` computes what RMSNorm layers compute, keeps less, and touches no layer of another formula."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fitune import ModelError, NoOptions
from fitune.compose.loss import plain_loss
from fitune.memory.cards.cards import find_card
from fitune.memory.forecast import Forecast, forecast
from fitune.memory.shapes import of_recipe
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry, write_recipe
from fitune_plugins.memory.fused_rms_norm import FusedRmsNorm, is_plain
from support.architectures import CONFIGS
from support.tiny import assert_close, gradients, loss_and_gradients, make_batch, with_lora

PLAIN = ("llama", "mistral", "qwen2", "qwen3", "phi3", "deepseek_v3", "smollm3", "granite")
OTHERS = ("gemma", "gemma2", "falcon", "gpt_neox", "phi")


def _model(kind: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **CONFIGS[kind]))
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            nn.init.normal_(module.weight, 1.0, 0.3)
    return model.train()


@pytest.mark.parametrize("kind", PLAIN)
def test_loss_and_gradients_are_the_same(kind: str) -> None:
    batch = make_batch([(list(range(5, 25)), list(range(5, 25)))])
    model = _model(kind)
    expected = loss_and_gradients(plain_loss, model, batch)
    model = FusedRmsNorm(NoOptions()).prepare(model)
    norms = [module for module in model.modules() if type(module).__name__.endswith("RMSNorm")]
    assert all("forward" in module.__dict__ for module in norms)
    loss, grads = loss_and_gradients(plain_loss, model, batch)
    torch.testing.assert_close(loss, expected[0], rtol=1e-5, atol=0)
    assert_close(grads, expected[1], relative=1e-4)


@pytest.mark.parametrize("kind", OTHERS)
def test_layers_of_another_formula_are_left_alone(kind: str) -> None:
    model = _model(kind)
    with pytest.raises(ModelError, match="no RMSNorm of the known formula"):
        FusedRmsNorm(NoOptions()).prepare(model)
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_a_layer_is_known_by_what_it_computes() -> None:
    class RightRMSNorm(nn.RMSNorm):
        pass

    class WrongRMSNorm(nn.RMSNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 1.01

    class OtherEpsRMSNorm(nn.RMSNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.rms_norm(x, (16,), self.weight, 1e-3)

    assert is_plain(RightRMSNorm(16, eps=1e-6))
    assert is_plain(RightRMSNorm(16, eps=1e-6, device="meta"))
    assert not is_plain(WrongRMSNorm(16, eps=1e-6))
    assert not is_plain(OtherEpsRMSNorm(16, eps=1e-6))
    assert not is_plain(RightRMSNorm(16, eps=1e-6, elementwise_affine=False))


def test_other_types_than_the_weight_s_are_computed_as_before() -> None:
    model = _model("llama").bfloat16()
    norm = model.model.norm
    hidden = torch.randn(2, 3, 64)
    expected = norm(hidden)
    FusedRmsNorm(NoOptions()).prepare(model)
    assert torch.equal(norm(hidden), expected)


def test_with_adapters_and_in_a_run(tmp_path: Path) -> None:
    model = with_lora(_model("llama"), "all-linear")
    batch = make_batch([(list(range(5, 25)), list(range(5, 25)))])
    expected = loss_and_gradients(plain_loss, model, batch)
    loss, grads = loss_and_gradients(plain_loss, FusedRmsNorm(NoOptions()).prepare(model), batch)
    torch.testing.assert_close(loss, expected[0], rtol=1e-5, atol=0)
    assert_close(grads, expected[1], relative=1e-4)
    recipe = write_recipe(tmp_path)
    plain, fused = (gradients(recipe, *o) for o in ((), ('memory.strategy=[{use="fused-rms-norm"}]',)))
    assert_close(fused[0], plain[0], relative=1e-4)


def test_a_forecast_keeps_no_float32_copies(tmp_path: Path) -> None:
    """A norm of transformers keeps its input in float32, a number a row, and the result before the weight; the kernel
    its input, which is the residual stream, and a number a row.
    """
    recipe = write_recipe(tmp_path, {"model": {"dtype": "bfloat16"}, "train": {"length": 512}})

    def planned(*overrides: str) -> Forecast:
        read = read_recipe(recipe, open_registry(), overrides)
        return forecast(read, of_recipe(read), find_card("a10g"))

    def saved(found: Forecast) -> int:
        return next(entry.bytes for entry in found.ledger.entries if entry.kind == "saved activations")

    plain, fused = planned(), planned('memory.strategy=[{use="fused-rms-norm"}]')
    config = fused.trace.config
    rows, length = fused.shapes.training[0].input_ids.shape
    norms = 2 * config.num_hidden_layers + 1
    wide = rows * length * config.hidden_size * 4  # a float32 copy; the residual stream itself is half of it
    assert saved(plain) - saved(fused) >= (norms - 1) * wide // 2
    assert fused.trace.flops_per_token == plain.trace.flops_per_token


def test_it_stands_before_others_that_change_norms() -> None:
    model = _model("llama")
    FusedRmsNorm(NoOptions()).prepare(model)
    with pytest.raises(ModelError, match="Let it stand first"):
        FusedRmsNorm(NoOptions()).prepare(model)
