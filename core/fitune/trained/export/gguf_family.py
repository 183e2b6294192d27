"""The families of models that GGUF files are written of: their names there, their settings and their weights.

Names and keys are those that llama.cpp reads (its docs call them the GGUF standard); those of tensors come from the
package `gguf`. What a family has in its configuration that llama.cpp computes otherwise is refused, or told.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fitune.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Setting = int | float | str

ROPE_FACTORS = "rope_freqs.weight"
"""Tensor by which llama.cpp divides each frequency of the rotary embedding: Llama 3.1 and later."""

OTHERWISE = (
    "Merge it to a plain model (ft merge RUN --to DIR) and convert that with llama.cpp's own convert_hf_to_gguf.py"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How models of one `model_type` are called in a GGUF file."""

    architecture: str
    permuted: bool = False
    """Whether llama.cpp turns neighbouring pairs of a head's numbers, where transformers turns halves."""
    biases: bool = False
    """Whether llama.cpp takes biases where the configuration switches them on."""
    window: bool = False
    """Whether transformers attends within `sliding_window`, which llama.cpp does not."""


FAMILIES = {
    "llama": Family(architecture="llama", permuted=True, biases=True),
    "mistral": Family(architecture="llama", permuted=True, window=True),
    "qwen2": Family(architecture="qwen2"),
    "qwen3": Family(architecture="qwen3"),
}
"""By transformers' `model_type`."""


def family_of(config: Any) -> Family:
    """The family of a model's configuration. Raises `ModelError` if it is none of these, or one of its settings is
    not what llama.cpp computes with.
    """
    kind = str(config.model_type)
    family = FAMILIES.get(kind)
    if family is None:
        raise ModelError(f'no GGUF is written of "{kind}", but of {", ".join(sorted(FAMILIES))}. {OTHERWISE}')
    for key in ("attention_bias", "mlp_bias"):
        if getattr(config, key, False) and not family.biases:
            raise ModelError(f'no GGUF is written of a "{kind}" with {key} = true, which llama.cpp lacks. {OTHERWISE}')
    if getattr(config, "use_sliding_window", False):
        raise ModelError(f'no GGUF is written of a "{kind}" with use_sliding_window = true. {OTHERWISE}')
    if config.hidden_act != "silu":
        raise ModelError(f'no GGUF is written of a "{kind}" with hidden_act = "{config.hidden_act}". {OTHERWISE}')
    rope = rope_of(config)
    if rope["rope_type"] not in ("default", "linear", "llama3"):
        raise ModelError(
            f'no GGUF is written of a "{kind}" whose rotary embedding is "{rope["rope_type"]}", but of default, '
            f"linear and llama3. {OTHERWISE}"
        )
    return family


def told_of(config: Any) -> tuple[str, ...]:
    """What differs in llama.cpp, for a person."""
    window = getattr(config, "sliding_window", None)
    if FAMILIES[config.model_type].window and window and window < config.max_position_embeddings:
        return (
            f"llama.cpp attends to all of a text, where the model attends to the last {window:,} tokens: beyond these "
            "its answers differ",
        )
    return ()


def rope_of(config: Any) -> dict[str, Any]:
    """What the rotary embedding is made by, its `rope_type` and `rope_theta` among it."""
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    theta = found.get("rope_theta", getattr(config, "rope_theta", 10000.0))
    return {**found, "rope_type": found.get("rope_type", found.get("type", "default")), "rope_theta": float(theta)}


def head_size(config: Any) -> int:
    """Numbers in an attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def settings_of(config: Any, family: Family) -> Iterator[tuple[str, Setting]]:
    """The keys of a model's shape, less their prefix, which is the architecture, with their values."""
    rope, head = rope_of(config), head_size(config)
    yield "block_count", int(config.num_hidden_layers)
    yield "context_length", int(config.max_position_embeddings)
    yield "embedding_length", int(config.hidden_size)
    yield "feed_forward_length", int(config.intermediate_size)
    yield "attention.head_count", int(config.num_attention_heads)
    yield "attention.head_count_kv", int(config.num_key_value_heads)
    yield "attention.layer_norm_rms_epsilon", float(config.rms_norm_eps)
    yield "attention.key_length", head
    yield "attention.value_length", head
    yield "rope.freq_base", rope["rope_theta"]
    yield "vocab_size", int(config.vocab_size)
    if family.permuted:
        yield "rope.dimension_count", head
    if rope["rope_type"] == "linear":
        yield "rope.scaling.type", "linear"
        yield "rope.scaling.factor", float(rope["factor"])


def rope_factors(config: Any) -> Tensor | None:
    """By how much each frequency is divided, `[head / 2]`; None where none is, or all are by the same."""
    if rope_of(config)["rope_type"] != "llama3":
        return None
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))[0]
    return frequencies(config) / scaled


def frequencies(config: Any) -> Tensor:
    """Those of a rotary embedding that is not scaled, `[head / 2]`, in radians a position."""
    head = head_size(config)
    theta = float(rope_of(config)["rope_theta"])
    return torch.pow(theta, -torch.arange(0, head, 2, dtype=torch.float32) / head)


def tensors_of(model: PreTrainedModel, family: Family) -> Iterator[tuple[str, Tensor]]:
    """Each weight of a merged model under its name in a GGUF file, as llama.cpp wants it. Raises `ModelError`."""
    import gguf

    config: Any = model.config
    (architecture,) = (one for one, name in gguf.MODEL_ARCH_NAMES.items() if name == family.architecture)
    names = gguf.get_tensor_name_map(architecture, int(config.num_hidden_layers))
    factors = rope_factors(config)
    if factors is not None:
        yield ROPE_FACTORS, factors
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    tied = head.weight is embedding.weight
    for name, weight in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ModelError(f'the merged weight {name} has no name in a GGUF of "{config.model_type}". {OTHERWISE}')
        yield found, _as_read(weight, found, config) if family.permuted else weight


def _as_read(weight: Tensor, name: str, config: Any) -> Tensor:
    """A weight of queries or keys with the two halves of each head's rows interleaved; any other as it is."""
    if ".attn_q." in name:
        heads = int(config.num_attention_heads)
    elif ".attn_k." in name:
        heads = int(config.num_key_value_heads)
    else:
        return weight
    halves: Tensor = weight.unflatten(0, (heads, 2, -1))
    return halves.transpose(1, 2).flatten(0, 2)
