"""`chunked-loss` gives the log-probabilities that full logits give, with the gradient of whatever is made of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from fitune import Batch
from fitune.compose.loss import plain_log_probs
from fitune.compose.objective import by_document
from fitune_plugins.memory.chunked_log_probs import chunked_log_probs
from fitune_plugins.memory.fused_cross_entropy import fused_log_probs, suits
from fitune_plugins.speed.cuda_graph_shapes import Shapes
from support.packed import SHAPE
from support.preferences import gradients, pairs, policy, together
from support.tiny import assert_close, make_batch, with_lora

KINDS = ("lora", "full", "tied", "lora on the head", "capped")
WEIGHTS = torch.tensor([0.7, -1.3, 2.0, 0.1, -0.4, 0.9, 1.1, -2.2, 0.3, 1.0, -0.6, 0.5])
"""What a loss may make of documents: each is multiplied by a number of its own."""


def model(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if kind == "lora":
        return policy()
    if kind == "capped":
        capped: Any = Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=3.0))
        return cast(PreTrainedModel, with_lora(capped, "q_proj").train())
    made: Any = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=kind == "tied"))
    return cast(PreTrainedModel, (with_lora(made, "q_proj", "lm_head") if "head" in kind else made).train())


def computed(
    log_probs: Callable[[nn.Module, Batch], Tensor], one: nn.Module, batch: Batch
) -> tuple[Tensor, list[Tensor]]:
    """By token, and the gradient of documents, each with its weight."""
    values = log_probs(one, batch)
    documents = by_document(values, batch)
    (documents * WEIGHTS[: len(documents)]).sum().backward()
    return values.detach(), gradients(one)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_value_and_gradient(kind: str, chunk: int) -> None:
    one, batch = model(kind), together(pairs())
    values, expected = computed(plain_log_probs, one, batch)
    found_values, found = computed(partial(chunked_log_probs, chunk=chunk), one, batch)
    torch.testing.assert_close(found_values, values, rtol=1e-5, atol=1e-6)
    assert_close(found, expected, relative=1e-5)
    assert any(bool(g.any()) for g in expected)


@pytest.mark.parametrize("kind", ["lora", "capped"])
@pytest.mark.parametrize("every", [False, True], ids=["some tokens", "all tokens"])
def test_with_one_kernel(kind: str, every: bool) -> None:
    """Loss and gradient of logits in their place, where the head is frozen."""
    one = model(kind)
    inner = cast(Any, one).get_base_model()
    assert suits(inner.get_output_embeddings())
    batch = make_batch([(range(1, 12), range(1, 12))] * 2) if every else together(pairs())
    values, expected = computed(plain_log_probs, one, batch)
    found_values, found = computed(partial(fused_log_probs, chunk=9), one, batch)
    torch.testing.assert_close(found_values, values, rtol=1e-5, atol=1e-6)
    assert_close(found, expected, relative=1e-5)


@pytest.mark.parametrize("log_probs", [partial(chunked_log_probs, chunk=7), partial(fused_log_probs, chunk=7)])
def test_padding_to_few_shapes_changes_nothing(log_probs: Callable[[nn.Module, Batch], Tensor]) -> None:
    """Batches that say more targets than they have, with documents of padding and of no token."""
    one, batch = model("lora"), together(pairs())
    wide = Shapes(length=32, more_targets=True).padded(batch)
    assert wide.targets > batch.targets
    assert wide.input_ids.shape[1] == 32
    before, after = (by_document(log_probs(one, given), given) for given in (batch, wide))
    role, wide_role = batch.extras["role"], wide.extras["role"]
    torch.testing.assert_close(after[wide_role != 0], before[role != 0], rtol=1e-5, atol=1e-6)
    assert len(after) == len(wide_role)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_without_gradients(kind: str) -> None:
    one, batch = model(kind).eval(), together(pairs())
    with torch.no_grad():
        found = chunked_log_probs(one, batch, chunk=4)
        expected = plain_log_probs(one, batch)
    assert not found.requires_grad
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_each_row_is_scaled_by_its_own_number_and_rounded_once() -> None:
    """In bfloat16 a document's weight is not rounded before it is multiplied."""
    from fitune_plugins.memory.chunked_log_probs import scaled

    rows = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    by = torch.tensor([0.1, 1 / 3, 0.7, 1.001])
    assert torch.equal(scaled(rows, by), (rows.float() * by[:, None]).to(torch.bfloat16))
