"""Adapters: which parameters train, `[adapter] use = "NAME"`.

The files that are not listed below are what `lora` and `ia3` are made of: `lora_targets.py` says which layers are
meant, `lora_tokens.py` how rows of new tokens train, `lora_merge.py` how what was trained becomes part of the weights,
`peft_files.py` what both have in common.
"""

PLUGINS: tuple[str, ...] = (
    "fitune_plugins.adapters.lora",  # low-rank adapters, by peft
    "fitune_plugins.adapters.ia3",  # vectors that scale layers, by peft
    "fitune_plugins.adapters.full",  # "none": every parameter trains
)
"""Dotted names of the modules, in the order in which they are loaded."""
