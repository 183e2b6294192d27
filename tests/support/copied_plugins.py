"""The plugins that come with fitune as somebody else's package: copied, renamed, installed by pip.

They are copied when a test asks for them, so that they cannot differ from what comes with fitune. Of the copies' text
nothing is changed but the package's name; `offered.py` gives their records on, each under another name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support.paths import ROOT

ORIGINAL, COPY, PREFIX = "fitune_plugins", "fitune_copies", "copy-"

OFFERED = f'''\
"""Offers what the copies offer, under other names."""

import dataclasses
import importlib

import fitune
import {COPY}

MODULES = [importlib.import_module(name) for name in {COPY}.PLUGINS]


def offered(hook):
    for module in MODULES:
        for record in getattr(module, hook, tuple)():
            yield renamed(record)


def renamed(record):
    inner = getattr(record, "for_preferences", None)  # a stage of the same name
    more = {{}} if inner is None else {{"for_preferences": renamed(inner)}}
    return dataclasses.replace(record, name="{PREFIX}" + record.name, **more)


@fitune.hookimpl
def ft_model_loaders():
    yield from offered("ft_model_loaders")


@fitune.hookimpl
def ft_adapters():
    yield from offered("ft_adapters")


@fitune.hookimpl
def ft_memory_strategies():
    yield from offered("ft_memory_strategies")


@fitune.hookimpl
def ft_data_stages():
    yield from offered("ft_data_stages")


@fitune.hookimpl
def ft_listeners():
    yield from offered("ft_listeners")


@fitune.hookimpl
def ft_objectives():
    yield from offered("ft_objectives")


@fitune.hookimpl
def ft_launchers():
    yield from offered("ft_launchers")


@fitune.hookimpl
def ft_task_suites():
    yield from offered("ft_task_suites")
'''

PROJECT = f"""\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "fitune-copies"
version = "1.0.0"
dependencies = ["fitune>=0.1,<0.2"]

[project.entry-points.fitune]
copies = "{COPY}.offered"
"""

ALONE = f"""\
import sys
import types

nothing = types.ModuleType("{ORIGINAL}")
nothing.PLUGINS = ()
sys.modules["{ORIGINAL}"] = nothing  # no package: an import of anything in it fails

from fitune.cli import main

main(sys.argv[1:])
"""
"""`ft` in a process in which no plugin comes with fitune."""


def write_copies(directory: Path) -> Path:
    """Write the package's sources; gives `directory`."""
    original = ROOT / "plugins" / ORIGINAL
    for file in sorted(original.rglob("*")):
        if file.is_file() and file.suffix not in (".pyc", ".typed"):
            copy = directory / COPY / file.relative_to(original)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(file.read_text(encoding="utf-8").replace(ORIGINAL, COPY), encoding="utf-8")
    (directory / COPY / "offered.py").write_text(OFFERED, encoding="utf-8")
    (directory / "pyproject.toml").write_text(PROJECT, encoding="utf-8")
    return directory


def of_copies(value: Any) -> Any:
    """A recipe's tables with the copies in place of what they are copies of."""
    if isinstance(value, Mapping):
        return {k: f"{PREFIX}{v}" if k == "use" else of_copies(v) for k, v in value.items()}
    return [of_copies(item) for item in value] if isinstance(value, list) else value
