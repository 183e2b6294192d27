"""Fixtures of all tests. No test needs a network, a GPU (but those marked so) or another test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # a tiny model's threads only wait for each other

from fitune.plugin.recipe import Recipe
from fitune.plugin.registry import Registry
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry, write_recipe

if TYPE_CHECKING:
    from support.forked import Forks


@pytest.fixture
def registry() -> Registry:
    """A fresh registry of the built-in plugins."""
    return open_registry()


@pytest.fixture
def recipe_path(tmp_path: Path) -> Path:
    """A recipe that trains a tiny model in a second."""
    return write_recipe(tmp_path / "recipe")


@pytest.fixture
def read(recipe_path: Path) -> Callable[..., Recipe]:
    """Reads that recipe, with overrides."""

    def read(*overrides: str, registry: Registry | None = None) -> Recipe:
        return read_recipe(recipe_path, registry or open_registry(), overrides)

    return read


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Starts real processes of `ft`, which have all imported that a run of the tiny recipe imports."""
    from support.forked import Forks

    home = tmp_path_factory.mktemp("forks")
    server = Forks(home / "home")
    server.learn(write_recipe(home / "recipe"))
    yield server
    server.close()


@pytest.fixture(autouse=True)
def _working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that name no directory, and prepared data, land in the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("FT_ALLOW_PLUGINS", "1")  # single-file plugins of tests are their own


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need a GPU say so where they are skipped."""
    if not any(item.get_closest_marker("gpu") for item in items):
        return
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
