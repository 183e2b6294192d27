"""Log-probabilities that were prepared are those of the code that made them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fitune.compose.reference import _key
from fitune.data.run_data import gather
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry

PLUGIN = '''
"""Shifts what a model says."""
from fitune import MemoryStrategy, NoOptions, Strategy, hookimpl


class Shifting(Strategy):
    shift = 1


@hookimpl
def ft_memory_strategies():
    yield MemoryStrategy(name="shifting", summary="Shifts", options=NoOptions, make=lambda options: Shifting())
'''


def test_another_version_of_a_plugin_has_a_key_of_its_own(recipe_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FT_ALLOW_PLUGINS", "1")
    plugin = recipe_path.parent / "shifting.py"
    text = f'plugins = ["shifting.py"]\n{recipe_path.read_text(encoding="utf-8")}'
    recipe_path.write_text(text, encoding="utf-8")

    def key(code: str) -> str | None:
        plugin.write_text(code, encoding="utf-8")
        recipe = read_recipe(recipe_path, open_registry(), ['memory.strategy=[{use="shifting"}]'])
        return _key(recipe, gather(recipe).data, torch.device("cpu"), None)

    first = key(PLUGIN)
    assert first is not None
    assert key(PLUGIN) == first
    assert key(PLUGIN.replace("shift = 1", "shift = 2")) != first
