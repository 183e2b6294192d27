"""Tiny decoders of the kinds whose layers the memory strategies know."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from support.tiny import with_lora

MODELS: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaForCausalLM, LlamaConfig),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config),
    "phi3": (Phi3ForCausalLM, Phi3Config),
    "mistral": (MistralForCausalLM, MistralConfig),
}
LAYERS = 3

TILED = {
    "llama": (2, 5),
    "qwen3": (2, 9),
    "gemma2": (2, 9),
    "phi3": (2, 5),
    "phi": (2, 0),  # torch's own norms, one kernel each
    "falcon": (2, 0),
    "gpt_neox": (2, 0),
    "olmo2": (2, 9),
    "cohere": (2, 3),
    "starcoder2": (2, 0),
    "granite": (2, 5),
    "glm4": (2, 9),
    "deepseek_v2": (1, 7),  # the other layer is a mixture of experts
}
"""Families of `support.architectures`, with how many MLPs and norms of their two layers are tiled."""


def decoder(kind: str = "llama", *, dropout: float = 0.0, lora: bool = False) -> PreTrainedModel:
    """One of three layers, in training mode; the same weights at each call."""
    torch.manual_seed(0)
    model_class, config_class = MODELS[kind]
    config = config_class(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=50,
        max_position_embeddings=64,
        attention_dropout=dropout,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
        initializer_range=0.3,
        **({"head_dim": 8} if kind == "gemma2" else {}),
    )
    model: Any = model_class(config)
    if lora:
        model = with_lora(model, "all-linear", dropout=dropout)
    trained: PreTrainedModel = model.train()
    return trained
