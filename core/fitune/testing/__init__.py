"""For the tests of plugins: a model of a few thousand parameters, its data, and a recipe that trains it in a second.

    from fitune.testing import assert_twin, open_registry, write_recipe, write_tiny_data, write_tiny_model

The model is a Llama with random weights and a tokenizer of single bytes; both are the same at every call. May import
every wing but `cli`; what is heavy, once it is called.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fitune.plugin.launching import Launcher
from fitune.plugin.records import MemoryTwin
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
        registry.register(plugin, getattr(plugin, "__name__", f"plugin-{number}"))
    return registry


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
    """Write the tiny model, its data and a recipe for three steps; gives the recipe's path.

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
        "data": {"source": [{"use": "jsonl", "path": "data.jsonl"}], "stage": [{"use": "chat"}]},
        "train": {"micro_batch": 2, "length": 128, "steps": 3, "learning_rate": 1e-2},
    }
    for name, table in (changes or {}).items():
        before = recipe.get(name)
        recipe[name] = {**before, **table} if isinstance(before, dict) and isinstance(table, Mapping) else table
    path = directory / "recipe.toml"
    path.write_text(tomli_w.dumps(recipe), encoding="utf-8")
    return path


def assert_twin(twin: MemoryTwin, *arguments: Any, **named: Any) -> None:
    """Assert that a memory twin takes what its kernel takes; give it arguments for one call of the kernel.

    On any device the results' shapes and types, and the bytes that are kept for the backward pass, must be equal. On a
    GPU the kernel's scratch is measured too: the most that is allocated in the call beside its results.
    """
    from fitune.memory.trace.compare_twin import compare

    compare(twin, arguments, named)


def assert_launcher(
    launcher: Launcher[Any],
    options: Any,
    directory: Path,
    *,
    instance: str | None = None,
    elapse: Callable[[], None] | None = None,
) -> None:
    """Assert that a launcher keeps its contract: it submits jobs that run for a second each, asks after them, stops one
    and fetches what they leave, in an empty directory. `elapse` is called between two questions; a moment passes
    without it.
    """
    from fitune.testing.launchers import launcher_keeps_its_contract

    launcher_keeps_its_contract(launcher, options, directory, instance, elapse or partial(time.sleep, 0.05))
