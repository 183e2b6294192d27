"""The strategies for long rows together: same gradients, one order of memory, and the few whole tensors left."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from fitune.memory.cards.cards import find_card
from fitune.memory.ledger import make_ledger
from fitune.memory.shapes import shapes_of_recipe
from fitune.memory.trace.run import trace
from fitune.plugin.recipe import Recipe
from fitune.testing import write_recipe
from fitune_plugins.memory.tiled_mlp import TiledMlpOptions
from support.architectures import recipe_of
from support.real_steps import both_logs, events
from support.tiny import assert_close, gradients

TOGETHER = ("gradient-checkpointing", "offload-checkpoints", "tiled-mlp", "chunked-loss")


def _with_tiles(recipe: Recipe, tokens: int) -> Recipe:
    options = TiledMlpOptions(tokens=tokens)
    uses = [replace(use, options=options) if use.record.name == "tiled-mlp" else use for use in recipe.strategies]
    return replace(recipe, strategies=tuple(uses))


@pytest.mark.parametrize(
    "strategies",
    [
        '{use="gradient-checkpointing"}, {use="offload-checkpoints"}, {use="tiled-mlp", tokens=32}',
        '{use="gradient-checkpointing", keep="attention"}, {use="offload-checkpoints"}, {use="tiled-mlp", tokens=32}',
        '{use="recompute-pointwise"}, {use="tiled-mlp", tokens=32}',
        '{use="fused-lora"}, {use="gradient-checkpointing"}, {use="offload-checkpoints"}, {use="tiled-mlp", tokens=32}',
    ],
)
def test_gradients_are_those_of_the_plain_run(strategies: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, {"adapter": {"use": "lora", "targets": "all-linear"}})
    plain = gradients(recipe, "train.steps=2")
    for step, expected in zip(
        gradients(recipe, "train.steps=2", f"memory.strategy=[{strategies}]"), plain, strict=True
    ):
        assert_close(step, expected, relative=1e-4)


@pytest.mark.parametrize("name", ["llama", "gemma2", "deepseek_v2"])
@pytest.mark.parametrize("lora", [False, True])
def test_the_card_sees_what_a_forecast_sees(name: str, lora: bool, tmp_path: Path) -> None:
    """Blocks of host memory are bytes; a forecast has none."""
    recipe = recipe_of(tmp_path, name, *TOGETHER, lora=lora, changes={"num_hidden_layers": 3})
    forecast, real = both_logs(_with_tiles(recipe, 48))
    on_host = {number for number, block in enumerate(real.blocks, 1) if block.dtype == "uint8"}
    real.events = [number for number in real.events if abs(number) not in on_host]
    assert events(forecast) == events(real)


def test_fourteen_whole_tensors_are_left(tmp_path: Path) -> None:
    """In the backward pass of attention: the layer's input and the one before it, what norm gives, query, key, value,
    result, the gradients of these four, that of the residual, and flash attention's sum in float32, which is two."""
    changes = {"hidden_size": 512, "intermediate_size": 2048, "num_key_value_heads": 4, "num_hidden_layers": 6}
    rows = {"length": 8192, "rows": 1, "changes": changes | {"max_position_embeddings": 8192}}
    recipe = _with_tiles(recipe_of(tmp_path, "llama", *TOGETHER, "host-embeddings", **rows), 512)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log = trace(recipe, shapes_of_recipe(recipe, 1), find_card("a10g")).log
    ledger = make_ledger(log)
    standing = {"weights", "adapter", "master weights", "optimizer state", "cuBLAS workspace", "gradients"}
    held = sum(entry.bytes for entry in ledger.entries if entry.kind not in standing)
    assert "flash_attention_backward" in ledger.at.operation
    assert 14 <= held / (8192 * 512 * 2) < 15
