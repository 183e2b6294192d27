"""A plugin that is called otherwise since a run began is still the run's: an upgraded one is told, and not missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fitune.plugin.registry import Registry
from fitune.recipe.reader import read_recipe
from fitune.runs.used_plugins import must_have_plugins, plugin_differences, plugins_of
from support.light import LIGHT, write_light
from support.made_plugins import STRATEGY, install

RENAMED = STRATEGY.replace("import MemoryStrategy", "import Formerly, MemoryStrategy").replace(
    'summary="For a test"',
    'summary="For a test", formerly=(Formerly(name="old", since="2.0", removed_in="3.0"),)',
)


def opened(site: Path, source: str, version: str, monkeypatch: pytest.MonkeyPatch) -> Registry:
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "fitune_renamed", raising=False)
    install(site, "fitune-renamed", source, version=version)
    return Registry.open()


def test_it_is_compared_with_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write_light(tmp_path, LIGHT.replace('use = "accumulation"\nsteps = 2', 'use = "old"'))
    first = opened(tmp_path / "first", STRATEGY.format(name="old"), "1.0", monkeypatch)
    before = plugins_of(first, read_recipe(recipe, first))
    later = opened(tmp_path / "later", RENAMED.format(name="new"), "2.0", monkeypatch)
    read = read_recipe(recipe, later)
    assert [use.record.name for use in read.strategies] == ["new"]
    assert read.notices[0].endswith(
        'the memory strategy "old" is deprecated since fitune-renamed 2.0 and gone in 3.0. Write "new"'
    )
    assert list(plugin_differences(before, plugins_of(later, read))) == [
        ("memory strategy old of fitune-renamed 1.0", "fitune-renamed 2.0")
    ]
    must_have_plugins(tmp_path, before, later)
