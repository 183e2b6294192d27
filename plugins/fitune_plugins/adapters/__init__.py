"""Adapters: which parameters train, `[adapter] use = "NAME"`.

`lora_merge.py` is no plugin: it is how LoRA's weights become part of the model's.
"""

PLUGINS: tuple[str, ...] = (
    "fitune_plugins.adapters.lora",  # low-rank adapters, by peft
    "fitune_plugins.adapters.full",  # "none": every parameter trains
)
"""Dotted names of the modules, in the order in which they are loaded."""
