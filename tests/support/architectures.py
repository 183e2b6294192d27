"""Tiny models of many architectures, as their configuration alone, and recipes that train them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fitune.plugin.recipe import Recipe
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry

VOCABULARY = 512
BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = {**BASE, "num_key_value_heads": 2}
WIDE = {**GROUPED, "head_dim": 16}
SLIDING = {"sliding_window": 16}
LATENT = {
    **BASE,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "mistral": {**GROUPED, **SLIDING},
    "qwen2": GROUPED,
    "qwen3": WIDE,
    "qwen3_moe": {**WIDE, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "gemma": WIDE,
    "gemma2": {**WIDE, **SLIDING},
    "gemma3_text": {**WIDE, **SLIDING},
    "phi3": GROUPED,
    "phi": GROUPED,
    "deepseek_v2": {**LATENT, "q_lora_rank": None},
    "deepseek_v3": {**LATENT, "q_lora_rank": 16, "n_group": 2, "topk_group": 1},
    "mixtral": {**GROUPED, **EXPERTS},
    "gpt_oss": {**WIDE, **SLIDING, **EXPERTS},
    "falcon": BASE,
    "gpt_neox": BASE,
    "olmo2": GROUPED,
    "cohere": GROUPED,
    "starcoder2": GROUPED,
    "smollm3": GROUPED,
    "granite": GROUPED,
    "glm4": WIDE,
    "phimoe": {**GROUPED, **EXPERTS},
    "mamba": {**BASE, "state_size": 8},
    "gpt2": {**BASE, "n_inner": 128},
    "jetmoe": {
        **BASE,
        "num_key_value_heads": 2,
        "kv_channels": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "aux_loss_coef": 0.0,
    },
    "dbrx": {
        "vocab_size": VOCABULARY,
        "d_model": 64,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 512,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "longcat_flash": {
        **BASE,
        "num_layers": 1,
        "num_hidden_layers": 2,
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "head_dim": 8,
        "v_head_dim": 16,
        "ffn_hidden_size": 128,
        "expert_ffn_hidden_size": 32,
        "n_routed_experts": 4,
        "zero_expert_num": 2,
        "moe_topk": 2,
        "num_experts_per_tok": 2,
    },
}
"""By transformers' `model_type`."""

ENCODERS: dict[str, dict[str, Any]] = {
    "megatron-bert": {**BASE, "is_decoder": True},
    "roformer": {**BASE, "is_decoder": True},
    "xlm": {
        "vocab_size": VOCABULARY,
        "emb_dim": 64,
        "n_layers": 2,
        "n_heads": 4,
        "pad_index": 2,
        "pad_token_id": 2,
        "causal": True,
    },
}
"""Encoders that have a head of a language model, too."""

TARGETS = {
    # peft also adapts their experts, which are parameters without a layer, if all is asked for
    "qwen3_moe": '["q_proj", "k_proj", "v_proj", "o_proj"]',
    "mixtral": '["q_proj", "k_proj", "v_proj", "o_proj"]',
    "phimoe": '["q_proj", "k_proj", "v_proj", "o_proj"]',
    "deepseek_v2": '["q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]',
    "deepseek_v3": '["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]',
    "mamba": '["in_proj", "x_proj"]',
}
"""What LoRA adapts; elsewhere all linear layers."""

EVALUATION = """\
[eval]
fraction = 0.1
loss = {evaluates}
exact_match = {generates}
max_new_tokens = 8
micro_batch = 2

"""

GRADIENT_CHECKPOINTING = "gradient-checkpointing"
CHUNKED_LOSS = "chunked-loss"

RECIPE = """\
name = "architecture"

[model]
use = "hf"
path = "model"
dtype = "{dtype}"

[adapter]
{adapter}

[memory]
strategy = [{strategies}]

[[data.source]]
use = "jsonl"
path = "data.jsonl"

{stages}
{evaluation}[train]
steps = 3
length = {length}
micro_batch = {rows}
"""


def write_config(directory: Path, name: str, changes: Mapping[str, Any] | None = None) -> Path:
    """Write a model's configuration and no weights; gives `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {"model_type": name, **{**CONFIGS, **ENCODERS}[name], **(changes or {})}
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


def recipe_of(
    directory: Path,
    name: str,
    *strategies: str,
    lora: bool = True,
    packed: bool = False,
    dtype: str = "bfloat16",
    dropout: float = 0.0,
    evaluates: bool = False,
    generates: bool = False,
    length: int = 64,
    rows: int = 2,
    changes: Mapping[str, Any] | None = None,
    targets: str | None = None,
) -> Recipe:
    """A recipe that trains a tiny model of this architecture, without data."""
    write_config(directory / "model", name, changes)
    (directory / "data.jsonl").write_text('{"messages": []}\n', encoding="utf-8")
    stages = ["chat", *(["tokenize", "truncate", "pack"] if packed else [])]
    targets = targets or TARGETS.get(name, '"all-linear"')
    evaluation = EVALUATION.format(evaluates=str(evaluates).lower(), generates=str(generates).lower())
    text = RECIPE.format(
        dtype=dtype,
        adapter=f'use = "lora"\nr = 4\ndropout = {dropout}\ntargets = {targets}' if lora else 'use = "none"',
        strategies=", ".join(f'{{use = "{strategy}"}}' for strategy in strategies),
        stages="".join(f'[[data.stage]]\nuse = "{stage}"\n\n' for stage in stages),
        evaluation=evaluation if evaluates or generates else "",
        length=length,
        rows=rows,
    )
    (directory / "recipe.toml").write_text(text, encoding="utf-8")
    return read_recipe(directory / "recipe.toml", open_registry(), ())
