"""Which modules come with fitune as plugins: those of the package beside the core, and the core's own."""

from __future__ import annotations

import importlib

PLUGINS = "fitune_plugins"
"""The package of the plugins that come with fitune, imported by its name: its `PLUGINS` lists them."""

OF_THE_CORE = (
    "fitune.recipe.secrets",
    "fitune.memory.cards.check",
    "fitune.cli.console_listener",
    "fitune.memory.measured",
    "fitune.runs.metrics",
    "fitune.runs.recorder",
    "fitune.runs.tracker",
)
"""Modules of the core that do their part by hooks, as plugins do."""


def built_in() -> tuple[str, ...]:
    """Dotted names of the modules that come with fitune as plugins, in the order in which they are loaded."""
    return (*importlib.import_module(PLUGINS).PLUGINS, *OF_THE_CORE)
