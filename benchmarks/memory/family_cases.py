"""Runs of many families of models, at the widths of their own default configurations, and few layers.

No family is known to the forecast: what it says of each follows from the code of transformers alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from forecast_cases import SHAPES, Case

LAYERS = 4
DENSE = (
    "falcon", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "gpt_neox", "gptj", "gpt2",
    "opt", "mpt", "stablelm", "olmo", "olmo2", "olmo3", "cohere", "cohere2", "starcoder2", "gpt_bigcode", "granite",
    "glm", "glm4", "persimmon", "codegen", "smollm3", "exaone4", "ernie4_5", "helium", "seed_oss", "arcee", "apertus",
    "biogpt", "xglm",
)  # fmt: skip
"""By transformers' `model_type`: each token goes through the same layers."""
EXPERTS = (
    "mixtral", "qwen2_moe", "qwen3_moe", "phimoe", "deepseek_v2", "gpt_oss", "olmoe", "granitemoe", "glm4_moe",
    "ernie4_5_moe", "jetmoe", "llama4_text",
)  # fmt: skip
"""Mixtures of experts."""
MIXED = ("mamba", "falcon_h1", "jamba", "bamba", "qwen3_next", "qwen3_5_text", "lfm2", "recurrent_gemma", "minimax")
"""With layers that are no attention."""
CHANGED: dict[str, dict[str, Any]] = {
    "gpt_oss": {"num_local_experts": 32},
    "llama4_text": {"num_local_experts": 4},
    "jamba": {"use_mamba_kernels": False},
    "gpt2": {"n_positions": 2048},
    "gpt_bigcode": {"n_positions": 2048},
    "biogpt": {"max_position_embeddings": 2048},
    "bamba": {"mamba_n_heads": 128, "mamba_d_head": 64},
    "deepseek_v2": {"num_experts_per_tok": 6, "n_routed_experts": 64, "moe_intermediate_size": 1408},
}
"""What of a default configuration is made smaller, to fit a card beside others, or needs a package."""
FULL = ("qwen3", "phi", "gpt2", "mistral", "ernie4_5_moe")
"""Those that are fine-tuned in full as well."""


def shape_of(name: str) -> str:
    """What the shape of a family is called, so that none is taken for a model of the other cases."""
    return f"{name}-{LAYERS}"


SHAPES.update(
    (shape_of(name), {"model_type": name, "num_hidden_layers": LAYERS, **CHANGED.get(name, {})})
    for name in DENSE + EXPERTS + MIXED
)


def family_cases() -> Iterator[Case]:
    """Two rows of an odd length on every family, LoRA on all of its linear layers; some with dropout, some in full."""
    for number, name in enumerate(DENSE + EXPERTS + MIXED):
        dropout = 0.05 if number % 4 == 3 and name in DENSE else 0.0
        yield Case(shape=shape_of(name), targets="all-linear", r=8, length=1100, micro_batch=2, dropout=dropout)
    for name in FULL:
        yield Case(shape=shape_of(name), targets="", length=1024)
