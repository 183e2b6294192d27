"""The plugins that come with fitune, a folder for each kind, through the same hooks as anybody's.

They import `fitune` and each other, nothing deeper (tests/plugins/test_imports.py). Importing this package imports no
plugin: the registry loads each by its name, so that one that is broken harms no other.
"""

from fitune_plugins import adapters, data, events, launchers, loaders, memory, objectives, speed, tasks

PLUGINS: tuple[str, ...] = (
    *loaders.PLUGINS,
    *adapters.PLUGINS,
    *objectives.PLUGINS,
    *speed.PLUGINS,
    *memory.PLUGINS,
    *data.PLUGINS,
    *events.PLUGINS,
    *launchers.PLUGINS,
    *tasks.PLUGINS,
)
"""Dotted names of all of them, in the order in which they are loaded."""
