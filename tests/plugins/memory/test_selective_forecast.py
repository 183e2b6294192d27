"""`gradient-checkpointing` with `keep` in a forecast: what is kept, and what is computed once."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal, cast

import pytest
import torch
from torch import Tensor

from fitune.memory.cards.cards import find_card
from fitune.memory.shapes import shapes_of_recipe
from fitune.memory.trace.run import trace
from fitune_plugins.memory import kept_results
from support import real_steps
from support.architectures import recipe_of
from support.kept import saved, traced
from support.real_steps import both_logs, events

Keep = Literal["nothing", "attention", "products"]
KEEP: tuple[Keep, ...] = ("nothing", "attention", "products")
LAYERS = 2
ROWS, LENGTH, HIDDEN, HEADS, SIZE = 2, 64, 64, 4, 16
TOKENS = ROWS * LENGTH
HALF, FLOAT = 2, 4


@pytest.fixture(autouse=True)
def _tiny_products_are_kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every product of a tiny model, but those over a rank of 4, were one over thousands of numbers."""
    monkeypatch.setattr(kept_results, "WIDE", 8)


def _strategy(keep: Keep) -> str:
    return f'gradient-checkpointing", keep = "{keep}'


def test_what_attention_takes_and_saves(tmp_path: Path) -> None:
    nothing, found = (traced(tmp_path / keep, _strategy(keep)) for keep in KEEP[:2])
    one = TOKENS * HIDDEN * HALF + ROWS * HEADS * LENGTH * FLOAT + 2 * 8 + 8
    """The result, a number for each of its rows, and the state of random numbers."""
    assert saved(found.log) - saved(nothing.log) == LAYERS * one
    assert nothing.flops_per_token - found.flops_per_token == LAYERS * 4 * HEADS * LENGTH * SIZE


def test_products_are_computed_once(tmp_path: Path) -> None:
    plain = traced(tmp_path / "plain", lora=False)
    found = traced(tmp_path / "found", _strategy("products"), lora=False)
    assert found.flops_per_token == plain.flops_per_token
    assert saved(found.log) < saved(plain.log)


def test_so_they_are_of_fused_adapters(tmp_path: Path) -> None:
    """Whose second product is added to the first layer's result where that stands."""
    plain = traced(tmp_path / "plain", "fused-lora")
    found = traced(tmp_path / "found", "fused-lora", _strategy("products"))
    assert found.flops_per_token == plain.flops_per_token


def test_attention_between_documents_is_kept(tmp_path: Path) -> None:
    for keep in KEEP[:2]:
        log = traced(tmp_path / keep, _strategy(keep), packed=True).log
        kernels = [b for b in log.blocks if b.step == 2 and b.operation == "torch_attn._varlen_attn.default"]
        assert ({b.phase for b in kernels} == {"forward"}) is (keep == "attention")


@pytest.mark.parametrize("card", ["t4", "h100"])
def test_other_kernels_are_kept(card: str, tmp_path: Path) -> None:
    """The memory-efficient one, and cuDNN's."""
    dtype = "float16" if card == "t4" else "bfloat16"
    recipe = recipe_of(tmp_path, "llama", _strategy("attention"), dtype=dtype, changes={"num_key_value_heads": HEADS})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log = trace(recipe, shapes_of_recipe(recipe, 1), find_card(card)).log
    kernel = "efficient" if card == "t4" else "cudnn"
    name = f"aten._scaled_dot_product_{kernel}_attention.default"
    assert {block.phase for block in log.blocks if block.operation == name} == {"forward"}


@pytest.mark.parametrize("keep", KEEP[1:])
@pytest.mark.parametrize("name", ["llama", "qwen3", "phi3"])
def test_a_forecast_does_what_a_run_does(
    name: str, keep: Keep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the CPU's own attention kernel in both."""

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], 1) for t in (key, value))
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return cast(Tensor, kernel(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0])

    monkeypatch.setattr(real_steps, "_attention", attention)
    forecast, real = both_logs(recipe_of(tmp_path, name, _strategy(keep), length=32))
    assert events(forecast) == events(real)
    assert any("flash_attention_for_cpu" in block.operation for block in real.blocks)
