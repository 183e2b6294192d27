"""Speed: what a card computes in a step, in fewer and faster kernels; `[[memory.strategy]] use = "NAME"` as all of them.

The files that are not listed below are what the strategies are made of.
"""

PLUGINS: tuple[str, ...] = (
    "fitune_plugins.speed.fast_layers",  # decoder layers of Llama's relations in few kernels
)
"""Dotted names of the modules, in the order in which they are loaded."""
