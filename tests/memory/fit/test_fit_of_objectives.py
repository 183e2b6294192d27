"""`[memory] fit` chooses for every objective, and what it chooses is forecast to fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from fitune.memory.cards.cards import find_card
from fitune.memory.fit.resolve import resolve
from fitune.memory.forecast import forecast, margin_of
from fitune.plugin.units import GIB
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry
from support.architectures import recipe_of
from support.objectives import asked
from support.traces import shapes

CHANGES = {"hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 8, "max_position_embeddings": 2048}


@pytest.mark.parametrize("name", ["dpo", "reward"])
def test_what_is_chosen_fits(name: str, tmp_path: Path) -> None:
    recipe_of(tmp_path, "llama", length=1024, rows=2, changes=CHANGES)
    overrides = (asked(name), 'data.stage=[{use="preferences"}, {use="chat"}]')
    plain = read_recipe(tmp_path / "recipe.toml", open_registry(), overrides)
    needed = forecast(plain, shapes(plain), find_card("a10g"))
    room = int(0.8 * needed.reserved) + margin_of(needed.reserved, expandable=False, quantized=False)
    fit = (*overrides, f'memory.fit="{room / GIB:.4f}GiB"')
    found = resolve(read_recipe(tmp_path / "recipe.toml", open_registry(), fit), open_registry(), shapes)
    assert found is not None
    assert found.forecast.passes
    assert found.forecast.reserved + found.forecast.margin <= found.card.usable
    assert found.forecast.reserved < needed.reserved
    assert found.recipe.objective.options == plain.objective.options
