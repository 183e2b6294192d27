"""Plugins that come with fitune have no privileges: they import what `fitune` exports, and nothing deeper."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import fitune
import fitune_plugins
from fitune.plugin.built_in import built_in
from fitune.plugin.registry import Registry
from support.paths import ROOT

HOME = ROOT / "plugins" / "fitune_plugins"
FILES = sorted(HOME.rglob("*.py"))


def reaching(source: str) -> Iterator[str]:
    """What a source takes of fitune that is not exported, wherever in it: imports, attributes, names to import by."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("fitune."))
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            if module.startswith(("fitune.", ".")):  # a relative import cannot be told from here
                yield module
            elif module == "fitune":
                yield from (f"fitune.{a.name}" for a in node.names if a.name not in fitune.__all__)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "fitune":
            if node.attr not in fitune.__all__:
                yield f"fitune.{node.attr}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(r"^fitune\.[a-z_.]+$", node.value)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(HOME)))
def test_a_plugin_sees_only_what_is_public(file: Path) -> None:
    assert list(reaching(file.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import fitune.plugin.model", ["fitune.plugin.model"]),
        ("def f():\n    from fitune.compose.step import Step", ["fitune.compose.step"]),
        ("from fitune import Plan, plugin", ["fitune.plugin"]),
        ("from fitune import *", ["fitune.*"]),
        ("from ..memory import tiles", ["..memory"]),
        ("import fitune\nfitune.Plan, fitune.errors", ["fitune.errors"]),
        ("__import__('fitune.errors')", ["fitune.errors"]),
        ('"""Of fitune.errors."""\nfrom fitune import Plan\nimport fitune_plugins.memory.tiles', []),
    ],
)
def test_what_reaches_deeper_is_found(source: str, found: list[str]) -> None:
    assert list(reaching(source)) == found


def test_every_module_that_implements_a_hook_is_listed() -> None:
    hooked = {
        ".".join(file.relative_to(HOME.parent).with_suffix("").parts)
        for file in FILES
        if re.search(r"^@hookimpl$", file.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert len(fitune_plugins.PLUGINS) == len(set(fitune_plugins.PLUGINS)) > 30
    assert set(fitune_plugins.PLUGINS) == hooked


def test_a_folder_lists_its_own_plugins() -> None:
    for dotted in fitune_plugins.PLUGINS:
        folder = importlib.import_module(dotted.rpartition(".")[0])
        assert dotted in folder.PLUGINS
        assert importlib.util.find_spec(dotted) is not None


def test_they_are_loaded_in_that_order_and_the_core_s_own_behind_them() -> None:
    own = built_in()[len(fitune_plugins.PLUGINS) :]
    assert built_in() == (*fitune_plugins.PLUGINS, *own)
    assert all(dotted.startswith("fitune.") for dotted in own)
    assert tuple(Registry.open(third_party=False).plugins) == built_in()
