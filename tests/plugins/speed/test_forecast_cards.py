"""What a card cannot compute is not forecast to be computed on it: the run would take more than its forecast."""

from __future__ import annotations

from pathlib import Path

import pytest

from fitune import ModelError
from fitune.compose.model import planned
from fitune.memory.cards.cards import find_card
from fitune.memory.forecast import Forecast, forecast
from fitune.memory.shapes import of_recipe
from support.architectures import recipe_of


def found(tmp_path: Path, card: str, *strategies: str) -> Forecast:
    recipe = recipe_of(tmp_path, "llama", *strategies, length=64)
    return forecast(recipe, of_recipe(recipe), find_card(card))


def test_layers_of_a_card_without_kernels_in_bfloat16_are_those_of_transformers(tmp_path: Path) -> None:
    plain, fast = found(tmp_path, "t4"), found(tmp_path, "t4", "fast-layers")
    why = "fast-layers: no decoder layer: a card of compute capability 7.5 cannot run its kernels in bfloat16"
    assert why in fast.trace.notices
    assert fast.allocated == plain.allocated
    with_kernels = found(tmp_path, "a10g", "fast-layers")
    assert not any("no decoder layer" in notice for notice in with_kernels.trace.notices)
    assert with_kernels.allocated < found(tmp_path, "a10g").allocated


def test_a_card_without_products_of_8_bits_is_refused_in_a_forecast_too(tmp_path: Path) -> None:
    why = r"fp8: a card of compute capability 8\.6 does not multiply numbers of 8 bits"
    with pytest.raises(ModelError, match=why):
        found(tmp_path, "a10g", "fp8")


def test_a_run_has_no_card_but_its_own(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "llama")
    assert planned(recipe, gpu=True)[1].capability is None
    assert planned(recipe, gpu=True, capability=(7, 5))[1].capability == (7, 5)
