"""`fast-layers` computes what transformers' layers with peft's adapters compute, family by family."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fitune_plugins.speed import kernels, pieces
from fitune_plugins.speed.fast_layers import MODELS
from support.architectures import CONFIGS
from support.fast_models import BATCH, assert_same, fast, must_be_the_same, plain_model, seeded
from support.tiny import assert_close, make_batch

KINDS = [kind for kind in MODELS if kind in CONFIGS]
EAGER_ONLY = ("gemma2",)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_the_same(kind: str) -> None:
    must_be_the_same(plain_model(kind))


def test_every_family_is_tested() -> None:
    assert sorted(KINDS) == sorted({*MODELS} - {"gemma3"})  # whose text model is gemma3_text


@pytest.mark.parametrize(
    "targets", [("q_proj", "v_proj"), ("k_proj",), ("down_proj", "gate_proj"), ("o_proj", "up_proj")]
)
@pytest.mark.parametrize("r", [1, 6, 24])
def test_any_targets_and_ranks(targets: tuple[str, ...], r: int) -> None:
    must_be_the_same(plain_model("qwen2", *targets, r=r))


@pytest.mark.parametrize("kind", ["llama", "gemma2", "qwen3", "olmo2", "phi3"])
@pytest.mark.parametrize("r", [16, 17, 256])
def test_large_ranks_are_products_of_their_own(kind: str, r: int) -> None:
    must_be_the_same(plain_model(kind, r=r))


SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "one bias": ("smollm3", {"attention_bias": True}),
    "tied": ("qwen3", {"tie_word_embeddings": True}),
    "heads of 80": ("llama", {"head_dim": 80}),
    "heads of 96": ("qwen3", {"head_dim": 96}),
    "one key": ("llama", {"num_key_value_heads": 1}),
    "a key each": ("llama", {"num_key_value_heads": 4}),
    "half turns": ("phi3", {"partial_rotary_factor": 0.5}),
    "nothing turns": ("smollm3", {"no_rope_layers": [0, 0]}),
    "one turns": ("smollm3", {"no_rope_layers": [1, 0]}),
    "gelu": ("llama", {"hidden_act": "gelu"}),
    "multiplied": ("granite", {"residual_multiplier": 0.3, "attention_multiplier": 0.2, "embedding_multiplier": 3.0}),
    "windows": ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "capped": ("gemma2", {"attn_logit_softcapping": 0.5, "query_pre_attn_scalar": 7}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: str) -> None:
    kind, changed = SHAPES[shape]
    must_be_the_same(plain_model(kind, **changed))


@pytest.mark.parametrize("kind", ["gemma2", "phi3"])
def test_adapters_of_some(kind: str) -> None:
    """Beside plain linears, with a norm behind the product, or all in one product."""
    must_be_the_same(plain_model(kind, *(("o_proj",) if kind == "gemma2" else ("qkv_proj", "down_proj"))))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("keys", [2, 4])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "olmo2", "smollm3"])
def test_kernels_get_rows_that_are_dense(
    kind: str, keys: int, rows: int, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels take any stride from row to row, and one number behind the other in a row: plain attention gives the keys
    of a single row a gradient that lies the other way round.
    """
    seen: list[tuple[str, torch.Tensor]] = []

    def watched(name: str) -> Any:
        compute = getattr(kernels, name)

        def call(*inputs: Any) -> Any:
            seen.extend((name, one) for one in inputs if isinstance(one, torch.Tensor) and one.dim() > 1)
            return compute(*inputs)

        return call

    for name in kernels.__all__:
        monkeypatch.setattr(kernels, name, watched(name))
    monkeypatch.setattr(pieces, "_rope", kernels.rope)
    monkeypatch.setattr(pieces, "_rope_backward", kernels.rope_backward)
    attention = "eager" if kind in EAGER_ONLY else attention
    model = plain_model(kind, attention=attention, num_key_value_heads=keys).double()
    batch = make_batch([(list(range(5, 25)), list(range(5, 25)))] * rows)
    seeded(fast(model), batch)
    assert {"rope_backward", "onto_residual_", "skinny", "skinny_"} <= {name for name, _ in seen}
    assert not [(name, one.shape, one.stride()) for name, one in seen if one.shape[-1] > 1 and one.stride(-1) != 1]


@pytest.mark.parametrize("kind", ["llama", "olmo2", "gemma2"])
def test_a_gradient_that_is_expanded(kind: str) -> None:
    """As a sum's is: with strides of 0. Of the hidden states behind the last layer, before any norm."""
    model = plain_model(kind).double()
    layer = model.base_model.model.model.layers[-1]

    def gradients() -> list[torch.Tensor]:
        made: list[torch.Tensor] = []
        handle = layer.register_forward_hook(lambda module, inputs, output: made.append(output))
        try:
            model(**BATCH.inputs())
        finally:
            handle.remove()
        trained = [p for name, p in model.named_parameters() if p.requires_grad and "lm_head" not in name]
        return list(torch.autograd.grad(made[0].sum(), trained))

    wanted = gradients()
    fast(model)
    assert_close(gradients(), wanted, relative=1e-5)


@pytest.mark.parametrize("kind", ["llama", "phi3"])
def test_parameters_that_are_put_elsewhere_are_found(kind: str) -> None:
    """`fsdp` gives each process the first one's, on its device: what was put side by side before is of no use then."""
    model, other = plain_model(kind), fast(plain_model(kind))
    with torch.no_grad():
        for mine, others in zip(model.parameters(), other.parameters(), strict=True):
            if mine.requires_grad:
                mine.mul_(1.5)
                others.data = others.data.clone().mul_(1.5)
    assert_same(seeded(other), seeded(model))
    with torch.no_grad():  # and are views again: what an optimizer writes is there
        for mine, others in zip(model.parameters(), other.parameters(), strict=True):
            if mine.requires_grad:
                mine.mul_(0.5)
                others.mul_(0.5)
    assert_same(seeded(other), seeded(model))
