"""Objectives: what a run minimises, `[objective] use = "NAME"`.

The files that are not listed below are what several of them share.
"""

PLUGINS: tuple[str, ...] = (
    "fitune_plugins.objectives.sft",  # the cross-entropy of target tokens
)
"""Dotted names of the modules, in the order in which they are loaded."""
