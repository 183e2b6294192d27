"""Plugins that follow a run and act on what happens in it."""

PLUGINS: tuple[str, ...] = (
    "fitune_plugins.events.spot_notice",  # a spot instance that is taken back stops its run
)
"""Dotted names of the modules, in the order in which they are loaded."""
