"""Text from models whose cache fails in transformers: the same as with one, and a note; or an error with the family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from fitune.compose.evaluate import no_defaults
from fitune.compose.writing import Writer
from fitune.errors import RunError

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "eos_token_id": None,
    "pad_token_id": 0,
}
BART: dict[str, Any] = {
    "vocab_size": 64,
    "d_model": 16,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 32,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
LINEAR: dict[str, Any] = {
    **SIZES,
    "layer_types": ["linear_attention"] * 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}


def _model(family: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **changes)).eval()


def _written(writer: Writer, **arguments: Any) -> list[int]:
    ids = torch.arange(1, 9)[None]
    config = GenerationConfig(max_new_tokens=4, min_new_tokens=4, pad_token_id=0)
    with torch.no_grad(), no_defaults(writer.model):
        out = writer.write(config, input_ids=ids, attention_mask=torch.ones_like(ids), **arguments)
    return [int(token) for token in out[0, 8:]]


def _greedy(model: Any) -> list[int]:
    """Token by token, each from all before it."""
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        for _ in range(4):
            ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1].argmax(-1)[:, None]], dim=1)
    return [int(token) for token in ids[0, 8:]]


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("bart", BART),
        ("qwen3_next", {**LINEAR, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
    ],
)
def test_without_a_cache_where_it_fails(family: str, sizes: dict[str, Any]) -> None:
    model = _model(family, **sizes)
    writer = Writer(model)
    assert _written(writer) == _greedy(model)
    assert f"the cache of {type(model).__name__} ({family}) fails in transformers" in writer.uncached
    caches: list[object] = []
    model.register_forward_pre_hook(lambda _, __, named: caches.append(named.get("past_key_values")), with_kwargs=True)
    _written(writer)
    assert caches == [None] * 4, "it is not tried again"


def test_with_a_cache_where_it_works() -> None:
    model = _model("llama", **SIZES)
    writer = Writer(model)
    assert _written(writer) == _greedy(model)
    assert writer.uncached == ""


def _fails(error: Exception) -> Callable[..., Any]:
    def forward(*_: Any, **__: Any) -> Any:
        raise error

    return forward


def test_a_family_that_cannot_write_is_named() -> None:
    model = _model("llama", **SIZES)
    model.forward = _fails(IndexError("no such layer"))
    with pytest.raises(
        RunError, match=r"LlamaForCausalLM \(llama\) cannot write text .* IndexError: no such layer\. M"
    ):
        _written(Writer(model))


def test_a_shortage_of_memory_is_no_fault_of_the_cache() -> None:
    model = _model("llama", **SIZES)
    model.forward = _fails(torch.OutOfMemoryError("CUDA out of memory"))
    writer = Writer(model)
    with pytest.raises(torch.OutOfMemoryError):
        _written(writer)
    assert writer.uncached == ""
