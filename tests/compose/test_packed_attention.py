"""Documents of a packed row do not see each other: loss and gradients are those of the documents one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    CTRLConfig,
    CTRLLMHeadModel,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

from fitune import Batch, ModelError
from fitune.compose.attention import isolate_documents
from fitune.compose.loss import plain_loss
from support.packed import (
    DOCUMENTS,
    FAMILIES,
    LOSSES,
    SHAPE,
    checkpointed,
    must_equal_one_by_one,
    tiny,
    total,
    two_rows,
)
from support.tiny import loss_and_gradients, with_lora


@pytest.fixture(scope="module")
def rows() -> Batch:
    return two_rows()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
def test_packed_equals_one_by_one(family: str, loss: str, checkpointing: bool, rows: Batch) -> None:
    model = tiny(family)
    if checkpointing:
        checkpointed(model)
    assert isolate_documents(model).by == "block mask"
    must_equal_one_by_one(model, rows, loss)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_isolation_the_loss_differs(family: str, rows: Batch) -> None:
    model = tiny(family)
    expected, _ = loss_and_gradients(total(plain_loss, DOCUMENTS), model, rows)
    together, _ = loss_and_gradients(plain_loss, model, replace(rows, positions=None, lengths=()))
    assert abs(float(together / expected) - 1) > 1e-3


def test_in_evaluation(rows: Batch) -> None:
    model = tiny("llama").eval()
    isolate_documents(model)
    with torch.no_grad():
        expected = total(plain_loss, DOCUMENTS)(model, rows)
        torch.testing.assert_close(plain_loss(model, rows), expected, rtol=1e-5, atol=0)


def test_with_an_adapter_and_nothing_else_that_trains(rows: Batch) -> None:
    model = with_lora(tiny("llama"), "q_proj", "v_proj")
    isolate_documents(model)
    must_equal_one_by_one(model, rows)


def test_the_proof_leaves_the_model_as_it_was() -> None:
    model = with_lora(tiny("llama"), "q_proj", dropout=0.5).eval()
    state = torch.get_rng_state()
    isolate_documents(model)
    assert not model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


# ------------------------------------------------------------------------------------------------------- refused models


class _Shift(nn.Module):
    """Each token, and half of the one before it: a state that crosses documents."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: Tensor) -> Tensor:
        """Shape `[batch, length, hidden]`, as given."""
        return cast(Tensor, self.inner(hidden + 0.5 * F.pad(hidden, (0, 0, 1, -1))))


def _shifted() -> PreTrainedModel:
    model = tiny("llama")
    layer = cast(Any, model).model.layers[1]
    layer.mlp = _Shift(layer.mlp)
    return model


def _without_positions() -> PreTrainedModel:
    model = tiny("llama")
    forward = model.forward

    def old(input_ids: Tensor, use_cache: bool) -> Any:
        return forward(input_ids=input_ids, use_cache=use_cache)

    model.__dict__["forward"] = old
    return model


LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
EXPERTS = {"head_dim": 8, "num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "vocab_size": 50,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

REFUSED: dict[str, tuple[Callable[[], PreTrainedModel], str]] = {
    "mamba": (lambda: MambaForCausalLM(MambaConfig(**SMALL, state_size=4)), r"layers?[. ]0\b.* of MambaForCausalLM"),
    "rwkv": (lambda: RwkvForCausalLM(RwkvConfig(**SMALL)), r"rwkv\.blocks\.0\.attention.* of RwkvForCausalLM"),
    "bloom": (
        lambda: BloomForCausalLM(BloomConfig(**{**SMALL, "n_head": 2})),
        r"transformer\.h\.0\.self_attention \(BloomAttention\) of BloomForCausalLM",
    ),
    "qwen3-next": (
        lambda: Qwen3NextForCausalLM(Qwen3NextConfig(**{**SHAPE, **LINEAR, **EXPERTS})),
        r'layer 0 \("linear_attention"\) of Qwen3NextForCausalLM',
    ),
    "llama4": (
        lambda: Llama4ForCausalLM(Llama4TextConfig(**SHAPE, head_dim=8, num_local_experts=2, intermediate_size_mlp=32)),
        r'layer 0 \("chunked_attention"\) of Llama4ForCausalLM',
    ),
    "a layer of its own": (_shifted, r"model\.layers\.1\.mlp \(_Shift\) of LlamaForCausalLM"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_model_that_carries_a_state_is_refused(kind: str) -> None:
    make, layer = REFUSED[kind]
    torch.manual_seed(0)
    with pytest.raises(ModelError, match=rf"^pack: {layer} is not known to keep .* Remove .* packs rows$"):
        isolate_documents(make())


def test_a_model_that_changes_its_embeddings_in_place(rows: Batch) -> None:
    """CTRL scales them; on 0.1 it was refused, since a leaf may not be changed so."""
    sizes = {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "dff": 32, "n_positions": 64}
    drop = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    torch.manual_seed(0)
    model = CTRLLMHeadModel(CTRLConfig(**cast(Any, {**sizes, **drop}), initializer_range=0.3)).train()
    assert isolate_documents(model).by == "block mask"
    torch.testing.assert_close(plain_loss(model, rows), total(plain_loss, DOCUMENTS)(model, rows), rtol=1e-5, atol=0)
    assert model.transformer.w.weight.grad is None


def test_a_model_that_takes_no_positions_is_refused() -> None:
    with pytest.raises(ModelError, match=r"^pack: LlamaForCausalLM cannot be run on a packed row: .*position_ids"):
        isolate_documents(_without_positions())
