"""What a forecast sees of tiled MLPs: no more than a tile is wide, and all of the work."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from fitune.memory.cards.cards import find_card
from fitune.memory.ledger import make_ledger
from fitune.memory.shapes import shapes_of_recipe
from fitune.memory.trace.log import MemoryLog
from fitune.memory.trace.run import Trace, trace
from fitune.plugin import strategy as alike
from fitune_plugins.memory import tiles
from fitune_plugins.memory.tiled_mlp import NAME, TiledMlpOptions
from support.architectures import CHUNKED_LOSS, GRADIENT_CHECKPOINTING, recipe_of
from support.decoders import TILED
from support.real_steps import both_logs, events


def _traced(directory: Path, *strategies: str, name: str = "llama", tokens: int = 0, **named: Any) -> Trace:
    recipe = recipe_of(directory, name, *strategies, **named)
    if tokens:
        at = [use.record.name for use in recipe.strategies].index(NAME)
        recipe = _with_tokens(recipe, at, tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return trace(recipe, shapes_of_recipe(recipe, 1), find_card("a10g"))


def _with_tokens(recipe: Any, at: int, tokens: int) -> Any:
    from dataclasses import replace

    uses = list(recipe.strategies)
    uses[at] = replace(uses[at], options=TiledMlpOptions(tokens=tokens))
    return replace(recipe, strategies=tuple(uses))


def _widest(log: MemoryLog, width: int) -> int:
    """Most rows of what is so wide."""
    return max(torch.Size(block.shape[:-1]).numel() for block in log.blocks if block.shape[-1:] == (width,))


@pytest.mark.parametrize("lora", [False, True])
def test_nothing_is_tokens_by_intermediate_wide(lora: bool, tmp_path: Path) -> None:
    strategies = (GRADIENT_CHECKPOINTING, CHUNKED_LOSS, NAME)
    log = _traced(tmp_path, *strategies, tokens=64, lora=lora, length=768, rows=1).log
    in_step = [block for block in log.blocks if block.phase in ("forward", "backward")]
    log.blocks = in_step
    assert _widest(log, 128) <= (64 if lora else 128), "the gradient of a weight has 64 rows of 128, or 128 of 64"
    whole = [
        b for b in in_step if b.dtype == "float32" and b.shape[-1:] == (64,) and torch.Size(b.shape[:-1]).numel() >= 768
    ]
    assert not whole, "norms make no whole copy in float32"


def test_it_lowers_the_peak_and_counts_all_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last product of an MLP is not needed again in a checkpointed layer, but is made in a tile."""
    strategies = (GRADIENT_CHECKPOINTING, CHUNKED_LOSS)
    shape: dict[str, Any] = {"length": 4096, "rows": 1, "changes": {"intermediate_size": 1024}}
    plain = _traced(tmp_path / "plain", *strategies, **shape)
    tiled = _traced(tmp_path / "tiled", *strategies, NAME, tokens=32, **shape)
    assert make_ledger(tiled.log).peak < 0.6 * make_ledger(plain.log).peak
    last = 2 * 4 * 64  # of the adapter of `down_proj`, a token
    assert tiled.flops_per_token == plain.flops_per_token + 2 * last
    monkeypatch.setattr(tiles, "ALIKE", 10**9)
    every = _traced(tmp_path / "every", *strategies, NAME, tokens=32, **shape)
    assert len(every.log.blocks) > 2 * len(tiled.log.blocks)
    assert every.flops_per_token == tiled.flops_per_token
    assert make_ledger(every.log).peak == make_ledger(tiled.log).peak
    assert alike.times() == 1


def test_what_a_tile_takes_in_the_backward_pass_is_its_modules(tmp_path: Path) -> None:
    log = _traced(tmp_path, GRADIENT_CHECKPOINTING, CHUNKED_LOSS, NAME, tokens=16).log
    blocks = [block for block in log.blocks if block.phase == "backward" and block.shape[-1:] == (128,)]
    assert {block.module.partition(".mlp")[0] for block in blocks} == {"model.layers.0", "model.layers.1"}
    assert {block.kind for block in blocks} == {"recomputed activations", "activation gradients", "gradients"}


@pytest.mark.parametrize("name", TILED)
def test_architectures_are_traced(name: str, tmp_path: Path) -> None:
    found = _traced(tmp_path, GRADIENT_CHECKPOINTING, NAME, name=name, tokens=16)
    left = set(range(1, len(found.log.blocks) + 1)) - {-number for number in found.log.events if number < 0}
    assert not [number for number in left if found.log.blocks[number - 1].kind == "saved activations"]


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("strategies", [(NAME,), (GRADIENT_CHECKPOINTING, NAME)])
def test_the_card_sees_what_a_forecast_sees(lora: bool, strategies: tuple[str, ...], tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "llama", *strategies, lora=lora)
    forecast, real = both_logs(_with_tokens(recipe, len(strategies) - 1, 48))
    assert events(forecast) == events(real)
