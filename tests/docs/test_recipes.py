"""Every recipe that the project ships can be read."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomli
import tomli_w

from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry
from support.paths import ROOT

RECIPES = ROOT / "recipes"
FOUND = sorted(RECIPES.rglob("*.toml"))


def test_all_recipes_are_found() -> None:
    assert {"deepseek7b_g5.toml", "quickstart.toml"} < {str(path.relative_to(RECIPES)) for path in FOUND}
    assert all(path.parent == RECIPES for path in FOUND), "a recipe below another directory is not shipped by name"


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.name)
def test_a_recipe_checks_without_a_problem(path: Path, tmp_path: Path) -> None:
    recipe = read_recipe(path, open_registry())
    resolved = tmp_path / "resolved.toml"
    resolved.write_text(tomli_w.dumps(recipe.to_toml()), encoding="utf-8")
    assert read_recipe(resolved, open_registry()).to_toml() == recipe.to_toml()


def test_the_founding_case_is_what_its_owners_asked_for() -> None:
    recipe = tomli.loads((RECIPES / "deepseek7b_g5.toml").read_text(encoding="utf-8"))
    assert recipe["model"] | {"revision": ""} == {
        "use": "deepseek-7b", "id": "deepseek-ai/deepseek-llm-7b-base", "revision": "", "dtype": "bfloat16"
    }  # fmt: skip
    assert recipe["adapter"]["r"] == 4
    assert recipe["adapter"]["alpha"] == 8
    assert recipe["memory"]["strategy"] == [
        {"use": "gradient-checkpointing"},
        {"use": "accumulation", "steps": 4},
        {"use": "pinned-memory", "enabled": False},
    ]
    assert recipe["train"]["micro_batch"] == 1
