"""`fused-lora` computes what peft's adapted layers compute, with fewer tensors; what it does not know stays peft's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fitune import ModelError, NoOptions
from fitune.compose.loss import plain_loss
from fitune.memory.cards.cards import find_card
from fitune.memory.forecast import Forecast, forecast
from fitune.memory.shapes import of_recipe
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry, write_recipe
from fitune_plugins.memory.fused_lora import FusedLora
from support.architectures import CONFIGS
from support.tiny import adapter, assert_close, loss_and_gradients, losses, make_batch, train, with_lora

FUSED = 'memory.strategy=[{use="fused-lora"}]'


def _model(kind: str = "llama", *targets: str, dropout: float = 0.0) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **CONFIGS[kind]))
    return with_lora(model.train(), *(targets or ("all-linear",)), dropout=dropout)


def _seeded(model: Any, batch: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    torch.manual_seed(1)
    return loss_and_gradients(plain_loss, model, batch)


BATCH = make_batch([(list(range(5, 25)), list(range(5, 25))), (list(range(30, 45)), list(range(30, 45)))])


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2", "phi3", "smollm3"])
def test_loss_and_gradients_are_the_same(kind: str, dropout: float) -> None:
    """qwen2 has layers with a bias."""
    model = _model(kind, dropout=dropout)
    expected = _seeded(model, BATCH)
    loss, grads = _seeded(FusedLora(NoOptions()).prepare(model), BATCH)
    torch.testing.assert_close(loss, expected[0], rtol=1e-5, atol=0)
    assert_close(grads, expected[1], relative=1e-4)


def test_results_and_gradients_of_the_input_are_the_same() -> None:
    """Of one layer, in both forms: with its frozen matrix, and with a layer before it that must be called."""
    model = _model()
    layer = model.base_model.model.model.layers[0].mlp.down_proj
    x = torch.randn(2, 5, 128, requires_grad=True)
    weight = torch.randn(2, 5, 64)
    parameters = [x, layer.lora_A.default.weight, layer.lora_B.default.weight]

    def found() -> list[torch.Tensor]:
        out = layer(x)
        return [out, *torch.autograd.grad((out * weight).sum(), parameters)]

    expected = found()
    FusedLora(NoOptions()).prepare(model)
    assert_close(found(), expected)
    layer.base_layer.register_forward_hook(lambda module, args, out: out * 1.0)
    assert_close(found(), expected)


def test_what_is_not_plain_is_peft_s_own() -> None:
    model = FusedLora(NoOptions()).prepare(_model())
    ids = BATCH.input_ids
    with torch.no_grad(), model.disable_adapter():  # type: ignore[operator]
        without = model(input_ids=ids).logits
        assert torch.equal(without, model.get_base_model()(input_ids=ids).logits)  # type: ignore[operator]
    with torch.no_grad():
        adapted = model(input_ids=ids).logits
        model.merge_adapter()  # type: ignore[operator]
        torch.testing.assert_close(model(input_ids=ids).logits, adapted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(adapted, without, atol=1e-3)


def test_adapters_of_another_type_are_refused() -> None:
    model = _model().bfloat16()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    with pytest.raises(ModelError, match="another type"):
        FusedLora(NoOptions()).prepare(model)


def test_a_model_without_adapters_is_refused() -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **CONFIGS["llama"]))
    with pytest.raises(ModelError, match="no linear layer has an adapter"):
        FusedLora(NoOptions()).prepare(model)


@pytest.mark.parametrize("strategies", ["", '{use="gradient-checkpointing"}, ', '{use="recompute-pointwise"}, '])
def test_runs_are_the_same(tmp_path: Path, strategies: str) -> None:
    recipe = write_recipe(tmp_path, {"adapter": {"targets": "all-linear", "dropout": 0.1}})
    plain = train(recipe, tmp_path / "plain").directory
    fused = train(recipe, tmp_path / "fused", f'memory.strategy=[{strategies}{{use="fused-lora"}}]').directory
    assert losses(fused) == pytest.approx(losses(plain), rel=1e-4)
    assert adapter(fused).keys() == adapter(plain).keys()


def test_on_a_base_in_4_bits(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    recipe = write_recipe(tmp_path, {"adapter": {"targets": "all-linear"}})
    runs = {
        name: losses(train(recipe, tmp_path / name, f'memory.strategy=[{{use="nf4"}}{more}]').directory)
        for name, more in {"plain": "", "fused": ', {use="fused-lora"}'}.items()
    }
    assert runs["fused"] == pytest.approx(runs["plain"], rel=1e-4)


def test_a_forecast_sees_fewer_temporaries_and_the_same_work(tmp_path: Path) -> None:
    targets = {"adapter": {"targets": "all-linear"}}
    recipe = write_recipe(tmp_path, {"model": {"dtype": "bfloat16"}, "train": {"length": 512}, **targets})

    def planned(*overrides: str) -> Forecast:
        read = read_recipe(recipe, open_registry(), overrides)
        return forecast(read, of_recipe(read), find_card("a10g"))

    plain, fused = planned(), planned(FUSED)
    assert fused.trace.flops_per_token == pytest.approx(plain.trace.flops_per_token, rel=1e-9)
    assert fused.allocated <= plain.allocated
    taken = [sum(block.rounded for block in found.trace.log.blocks) for found in (plain, fused)]
    assert taken[1] < 0.9 * taken[0]
