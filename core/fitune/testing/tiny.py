"""A model of a few thousand parameters, its data, and a recipe that trains it in a second."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from fitune.plugin.deprecation import SINGLE_FILE
from fitune.plugin.registry import Registry
from fitune.plugin.trust import Trust

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{ '<|start|>' + message['role'] + '\n' + message['content'] + '<|end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start|>assistant\n' }}{%- endif -%}
"""


def open_registry(*plugins: object) -> Registry:
    """A registry of the built-in plugins and these; installed ones are not loaded, and recipes' own files may run."""
    registry = Registry.open(third_party=False, trust=Trust(allow=True))
    for number, plugin in enumerate(plugins, 1):
        registry.register(plugin, name_of(plugin, f"plugin-{number}"))
    return registry


def name_of(plugin: object, otherwise: str = "plugin-1") -> str:
    """What a plugin is called where nobody has named it: its module, or its file, if it is a single one."""
    name: str = getattr(plugin, "__name__", otherwise)
    file = getattr(plugin, "__file__", None)
    return Path(file).name if name.startswith(SINGLE_FILE) and file else name


def write_tiny_model(directory: Path, *, layers: int = 2, dtype: str = "float32") -> Path:
    """Write a Llama of `layers` layers, hidden size 32 and 260 tokens, with its tokenizer; gives `directory`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=260,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=257,
        pad_token_id=258,
        tie_word_embeddings=False,
        initializer_range=0.1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    model.save_pretrained(directory)
    write_tiny_tokenizer(directory)
    return directory


def write_tiny_tokenizer(directory: Path) -> None:
    """Write a tokenizer of single bytes with a ChatML-like template: `<|start|>` 256, `<|end|>` 257, `<|pad|>` 258."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<|start|>", "<|end|>", "<|pad|>")])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>")
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(str(directory))


def write_tiny_data(file: Path, rows: int = 12) -> Path:
    """Write conversations of uneven length as JSON Lines; gives `file`."""
    with file.open("w", encoding="utf-8") as out:
        for number in range(rows):
            turns = [
                {"role": "user", "content": f"Count to {number % 5 + 1}."},
                {"role": "assistant", "content": " ".join(str(n + 1) for n in range(number % 5 + 1))},
            ]
            out.write(json.dumps({"messages": turns}) + "\n")
    return file


def write_recipe(directory: Path, changes: Mapping[str, object] | None = None) -> Path:
    """Write the tiny model, its data and a recipe for three steps, to which nothing is added that it does not name
    unless `fit` is asked for (`[memory] fast`); gives the recipe's path.

    `changes` are TOML tables laid over the recipe's own, e.g. `{"memory": {"strategy": [{"use": "chunked-loss"}]}}`.
    """
    import tomli_w

    directory.mkdir(parents=True, exist_ok=True)
    write_tiny_model(directory / "model")
    write_tiny_data(directory / "data.jsonl")
    recipe: dict[str, object] = {
        "name": "tiny",
        "model": {"use": "hf", "path": "model", "dtype": "float32"},
        "adapter": {"use": "lora"},
        "memory": {} if "fit" in _table(changes, "memory") else {"fast": False},
        "data": {"source": [{"use": "jsonl", "path": "data.jsonl"}], "stage": [{"use": "chat"}]},
        "train": {"micro_batch": 2, "length": 128, "steps": 3, "learning_rate": 1e-2},
    }
    for name, table in (changes or {}).items():
        before = recipe.get(name)
        recipe[name] = {**before, **table} if isinstance(before, dict) and isinstance(table, Mapping) else table
    path = directory / "recipe.toml"
    path.write_text(tomli_w.dumps(recipe), encoding="utf-8")
    return path


def _table(changes: Mapping[str, object] | None, name: str) -> Mapping[str, object]:
    table = (changes or {}).get(name)
    return table if isinstance(table, Mapping) else {}
