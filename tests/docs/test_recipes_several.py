"""The recipes for several cards: traced in a few layers, each card has its part, and the whole would fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fitune.memory.cards.cards import find_card
from fitune.memory.cards.several import several
from fitune.memory.forecast import on_card
from fitune.memory.shapes import of_recipe
from fitune.memory.trace.run import trace
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry
from support.paths import ROOT

SHAPES = ROOT / "docs" / "published_shapes.json"
FEW = 2


@pytest.mark.parametrize(
    ("name", "bytes_a_weight", "length"),
    [
        ("llama3_70b_4xh100", 2, 256),
        ("llama31_8b_full_4xh100", 4, 256),
        ("qwen25_7b_1m_4xh100", 2, 1_000_000),  # with few tokens, loading would take most
    ],
    ids=lambda value: str(value),
)
def test_each_of_four_cards_has_a_quarter(name: str, bytes_a_weight: int, length: int, tmp_path: Path) -> None:
    registry = open_registry()
    path = ROOT / "recipes" / f"{name}.toml"
    model = read_recipe(path, registry, look=False).model.options.id
    config = json.loads(SHAPES.read_text(encoding="utf-8"))[model]["config"]
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    recipe = read_recipe(path, registry, [f"model.path={json.dumps(str(tmp_path))}", f"train.length={length}"])
    card = several(find_card("h100"), 4)
    traced = trace(recipe, of_recipe(recipe), card, layers=FEW)
    assert traced.plan.sharded
    found = on_card(traced, of_recipe(recipe), card)
    kinds = ("weights", "master weights")  # the shards of what trains are the masters
    weights = sum(entry.bytes for entry in found.ledger.entries if entry.kind in kinds)
    assert weights == pytest.approx(traced.parameters * bytes_a_weight / 4, rel=0.05)
    layers = config["num_hidden_layers"]
    assert weights / FEW * layers < card.usable, "even if embeddings were as many"


def test_a_million_tokens_fit_on_four_cards() -> None:
    """By the index, whose figures `docs/make_recipes.py` forecasts."""
    index = json.loads((ROOT / "recipes" / "index.json").read_text(encoding="utf-8"))
    (entry,) = (entry for entry in index if entry["name"] == "qwen25_7b_1m_4xh100")
    assert (entry["card"], entry["tokens"], entry["fits"]) == ("4 x H100-80GB", 1_000_000, True)
    assert "context-parallel" in {table["use"] for table in entry["strategies"]}
