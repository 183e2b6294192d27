"""Speed: what a card computes in a step, in fewer and faster kernels, `[[memory.strategy]] use = "NAME"`.

The files that are not listed below are what the strategies are made of.
"""

PLUGINS: tuple[str, ...] = (
    "fitune_plugins.speed.fp8",  # the frozen base's products in 8-bit floating point
    "fitune_plugins.speed.fast_layers",  # decoder layers of Llama's relations in few kernels
    "fitune_plugins.speed.flash_attention",  # FlashAttention 3 or 4 for packed rows, where it is installed
    "fitune_plugins.speed.cuda_graphs",  # micro-batches are recorded once, and replayed
)
"""Dotted names of the modules, in the order in which they are loaded."""
