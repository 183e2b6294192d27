"""Model loaders: where a model and its tokenizer come from, `[model] use = "NAME"`.

`remote_code.py` is no plugin: it is what each of them asks before a model may run code of its own.
"""

PLUGINS: tuple[str, ...] = (
    "fitune_plugins.loaders.hf",  # any causal language model of transformers
    "fitune_plugins.loaders.gguf",  # a GGUF file, dequantised
    "fitune_plugins.loaders.deepseek_7b",  # DeepSeek-LLM 7B, checked to be that model
)
"""Dotted names of the modules, in the order in which they are loaded."""
