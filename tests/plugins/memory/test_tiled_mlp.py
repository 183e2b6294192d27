"""`tiled-mlp` computes MLPs and norms in tiles of tokens, and changes no number but by rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from fitune import ModelError
from fitune.compose.loss import plain_loss
from fitune.testing import write_recipe
from fitune_plugins.memory.gradient_checkpointing import GradientCheckpointing, GradientCheckpointingOptions
from fitune_plugins.memory.tiled_mlp import TiledMlp, TiledMlpOptions
from fitune_plugins.memory.tiles import Tiled
from support.architectures import CONFIGS
from support.decoders import LAYERS, MODELS, TILED, decoder
from support.tiny import assert_close, gradients, loss_and_gradients, make_batch

BATCH = make_batch([([3, 7, 1, 4, 9, 9, 2, 5], [3, 7, 1, 4, 9, 9, 2, 5]), ([8, 6, 4, 2, 1], [8, 6, 4, 2, 1])])
TOKENS = 16


def _checkpointed(model: PreTrainedModel) -> PreTrainedModel:
    return GradientCheckpointing(GradientCheckpointingOptions()).prepare(model)


def _tiled(model: PreTrainedModel, tokens: int) -> PreTrainedModel:
    return TiledMlp(TiledMlpOptions(tokens=tokens)).prepare(model)


def test_tiles_of_several_rows_are_whole_to_modules_that_view_them() -> None:
    def gpt2() -> PreTrainedModel:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **CONFIGS["gpt2"], initializer_range=0.1))
        made: PreTrainedModel = model.eval()  # no dropout
        return made

    value, expected = _seeded(gpt2())
    for tokens in (1, 6, TOKENS):
        found_value, found = _seeded(_tiled(gpt2(), tokens).train(mode=False))
        torch.testing.assert_close(found_value, value)
        assert_close(found, expected)


def _names(model: PreTrainedModel) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module.__dict__.get("forward"), Tiled)]


def _seeded(model: PreTrainedModel) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(7)
    return loss_and_gradients(plain_loss, model, BATCH)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_gradients_are_equal(kind: str, lora: bool, checkpointed: bool) -> None:
    value, expected = _seeded(decoder(kind, lora=lora))
    for tokens in (1, 6, TOKENS):
        model = decoder(kind, lora=lora)
        found_value, found = _seeded(_tiled(_checkpointed(model) if checkpointed else model, tokens))
        torch.testing.assert_close(found_value, value, rtol=1e-6, atol=0)
        assert_close(found, expected, relative=1e-5)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_one_tile_drops_the_same_units(checkpointed: bool) -> None:
    value, expected = _seeded(decoder(dropout=0.5, lora=True))
    model = decoder(dropout=0.5, lora=True)
    found_value, found = _seeded(_tiled(_checkpointed(model) if checkpointed else model, TOKENS))
    assert found_value == value
    assert_close(found, expected, relative=1e-5)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_gradient_is_of_the_units_that_were_kept(checkpointed: bool) -> None:
    """Of several tiles: what a small step along the gradient changes, with the same random numbers, is its square."""
    model: Any = decoder(dropout=0.5, lora=True)
    model = _tiled(_checkpointed(model) if checkpointed else model, 3)
    trained = [p for p in model.parameters() if p.requires_grad]
    _, found = _seeded(model)
    square = sum(float(g.square().sum()) for g in found)

    def moved(step: float) -> float:
        with torch.no_grad():
            for p, g in zip(trained, found, strict=True):
                p += step * g
        torch.manual_seed(7)
        return float(plain_loss(model, BATCH).detach())

    size = 3e-3 / square**0.5  # small beside the curve, large beside the rounding
    up = moved(size)
    down = moved(-2 * size)
    assert (up - down) / (2 * size) == pytest.approx(square, rel=0.01)


def test_the_state_of_random_numbers_afterwards_is_that_of_the_forward_pass() -> None:
    model = _tiled(decoder(dropout=0.5, lora=True), 3)
    torch.manual_seed(7)
    loss = plain_loss(model, BATCH)
    state = torch.get_rng_state()
    loss.backward()
    assert torch.equal(torch.get_rng_state(), state)


def test_no_more_than_a_tile_is_wide_and_none_is_computed_a_third_time() -> None:
    model = _tiled(_checkpointed(decoder(lora=True)), 6)
    rows: list[int] = []
    for name, module in model.named_modules():
        if name.endswith("gate_proj"):
            module.register_forward_hook(lambda module, inputs, out: rows.append(out.numel() // out.shape[-1]))
    plain_loss(model, BATCH).backward()
    of_each = [6, 6, 4]  # 3 + 3 + 2 tokens of both rows
    assert rows == of_each * LAYERS * 2


def test_without_gradients() -> None:
    model = decoder().eval()
    with torch.no_grad():
        expected = plain_loss(model, BATCH)
        found = plain_loss(_tiled(model, 3), BATCH)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_generation_is_the_same() -> None:
    def answer(model: PreTrainedModel) -> Tensor:
        found: Tensor = model.eval().generate(BATCH.input_ids[:1], max_new_tokens=6, do_sample=False)
        return found

    assert torch.equal(answer(_tiled(decoder(), 3)), answer(decoder()))


def test_sums_over_tiles_are_made_in_float32() -> None:
    """In bfloat16, gradients are no further off than those of the whole."""
    _, exact = _seeded(decoder())
    whole: Any = decoder().to(torch.bfloat16)  # type: ignore[arg-type]
    _, plain = _seeded(whole)
    _, found = _seeded(_tiled(whole, 1))
    assert {g.dtype for g in found} == {torch.bfloat16}

    def error(gradients: list[Tensor]) -> float:
        return sum(float((g.float() - e).norm()) for g, e in zip(gradients, exact, strict=True))

    assert error(found) < 1.1 * error(plain)


@pytest.mark.parametrize("shape", [(2, 40, 6), (3, 5, 17, 6), (3, 17, 5, 6), (40, 6), (70, 2, 6)])
def test_any_axis_may_be_the_longest(shape: tuple[int, ...]) -> None:
    """And what is not contiguous keeps its values."""
    module = nn.LayerNorm(6)
    x = torch.randn(shape[::-1]).permute(*reversed(range(len(shape)))).requires_grad_()
    expected = torch.autograd.grad(module(x).square().sum(), (x, *module.parameters()))
    tiled = Tiled(module, 8, random=False)
    found = torch.autograd.grad(tiled(x).square().sum(), (x, *module.parameters()))
    assert_close(found, expected)


def test_other_calls_go_through() -> None:
    module = nn.Bilinear(3, 3, 3)
    tiled = Tiled(module, 1, random=False)
    x = torch.randn(4, 3)
    assert torch.equal(tiled(x, x), module(x, x))


def _made(name: str) -> PreTrainedModel:
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **CONFIGS[name]))
    return model


@pytest.mark.parametrize("name", TILED)
def test_what_is_tiled(name: str) -> None:
    found = _names(_tiled(_made(name), 8))
    mlps = [name for name in found if name.endswith("mlp")]
    assert (len(mlps), len(found) - len(mlps)) == TILED[name]


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss", "phimoe", "mamba"])
def test_experts_are_left_alone(name: str) -> None:
    with pytest.raises(ModelError, match=r"tiled-mlp: .* has no MLP that can be computed in tiles"):
        _tiled(_made(name), 8)


def test_an_mlp_that_mixes_tokens_is_refused() -> None:
    model: Any = decoder()
    mlp = model.model.layers[1].mlp
    plain = mlp.forward
    mlp.forward = lambda x: plain(x + torch.nn.functional.pad(x, (0, 0, 1, -1)))  # with the token before it
    mlp.__class__ = type("ShiftedMLP", (type(mlp),), {})
    with pytest.raises(ModelError, match="tiled-mlp: ShiftedMLP does not treat every token by itself"):
        _tiled(model, 4)
    assert model.training
    assert mlp.training


def test_in_a_run(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, {"adapter": {"use": "lora", "targets": "all-linear"}})
    plain = gradients(recipe, "train.steps=2")
    both = 'memory.strategy=[{use="gradient-checkpointing"}, {use="tiled-mlp", tokens=16}]'
    for step, expected in zip(gradients(recipe, "train.steps=2", both), plain, strict=True):
        assert_close(step, expected, relative=1e-4)
