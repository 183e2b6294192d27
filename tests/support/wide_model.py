"""A model that is wide enough for bitsandbytes' kernels."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def write_wide_model(directory: Path) -> None:
    """A Llama in place of the tiny one: bitsandbytes' kernels take rows of whole blocks of 64 weights, and its state is
    paged where a tensor has 100,000 elements."""
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=1024,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=257,
        pad_token_id=258,
        initializer_range=0.1,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(directory)
