"""Model loaders: where a model and its tokenizer come from, `[model] use = "NAME"`.

`remote_code.py` is no plugin: it is what each of them asks before a model may run code of its own. `quantized.py` reads
what a checkpoint says of its own quantisation, for which `bitsandbytes_layers.py` and `int8_shapes.py` know the layers,
and `bitsandbytes_stand_in.py` those of a forecast where bitsandbytes is not installed; `unpacked.py` makes plain
weights of those of GPTQ and AWQ, by `packed_weights.py`. `loading.py` is what all loaders call transformers by.
"""

PLUGINS: tuple[str, ...] = (
    "fitune_plugins.loaders.hf",  # any causal language model of transformers
    "fitune_plugins.loaders.gguf",  # a GGUF file, dequantised
    "fitune_plugins.loaders.deepseek_7b",  # DeepSeek-LLM 7B, checked to be that model
    "fitune_plugins.loaders.quantized",  # no loader: checkpoints that are quantised already
)
"""Dotted names of the modules, in the order in which they are loaded."""
