"""`chunked-loss` equals the plain loss, value and gradients; a model that it does not know is refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from fitune import Batch, ModelError
from fitune.compose.loss import plain_loss
from fitune.memory.allocator.replay import replay
from fitune.memory.cards.cards import find_card
from fitune.memory.shapes import shapes_of_recipe
from fitune.memory.trace.run import trace
from fitune_plugins.memory import chunked_cross_entropy
from fitune_plugins.memory.chunked_cross_entropy import chunked_loss, must_match
from support.architectures import recipe_of
from support.tiny import assert_close, loss_and_gradients, make_batch, with_lora

SHAPE: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 50,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
KINDS = ["llama", "tied", "gemma2", "lora", "lora on the head"]


def _model(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if kind == "gemma2":
        capped: Any = Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=3.0))
        return cast(PreTrainedModel, capped.train())
    model: Any = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=kind == "tied"))
    if not kind.startswith("lora"):
        return cast(PreTrainedModel, model.train())
    targets = ["q_proj", "lm_head"] if kind == "lora on the head" else ["q_proj"]
    return cast(PreTrainedModel, with_lora(model, *targets).train())


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Uneven rows: one with a label at position 0, which counts for nothing, one without a target, a last one of
    which only the last token is trained on."""
    random = torch.Generator().manual_seed(1)
    tokens = [torch.randint(1, 50, (n,), generator=random).tolist() for n in (9, 5, 12, 3)]
    return make_batch(
        [
            (tokens[0], tokens[0]),
            (tokens[1], [-100] * 5),
            (tokens[2], [-100] * 6 + tokens[2][6:]),
            (tokens[3], [-100] * 2 + tokens[3][2:]),
        ]
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_value_and_gradients(kind: str, chunk: int, batch: Batch) -> None:
    assert batch.targets == 8 + 6 + 1
    model = _model(kind)
    must_match(model)
    value, expected = loss_and_gradients(plain_loss, model, batch)
    found_value, found = loss_and_gradients(partial(chunked_loss, chunk=chunk), model, batch)
    torch.testing.assert_close(found_value, value, rtol=1e-6, atol=0)
    assert_close(found, expected, relative=1e-5)
    assert all(bool(g.any()) for g in expected)  # nothing is equal by being nothing


def test_the_gradient_is_scaled_by_what_comes_after(batch: Batch) -> None:
    model = _model("llama")
    _, once = loss_and_gradients(partial(chunked_loss, chunk=4), model, batch)
    _, thrice = loss_and_gradients(lambda m, b: 3 * chunked_loss(m, b, chunk=4), model, batch)
    assert_close(thrice, [3 * g for g in once])


def test_only_a_head_adapter_trains(batch: Batch) -> None:
    """The hidden states want no gradient then; the head still does."""
    base = _model("llama")
    model = with_lora(base, "lm_head")
    _, expected = loss_and_gradients(plain_loss, model, batch)
    _, found = loss_and_gradients(partial(chunked_loss, chunk=4), model, batch)
    assert_close(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_without_gradients(kind: str, batch: Batch) -> None:
    model = _model(kind).eval()
    with torch.no_grad():
        found, expected = chunked_loss(model, batch, chunk=4), plain_loss(model, batch)
    assert not found.requires_grad
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["llama", "lora on the head"])
def test_bfloat16(kind: str, batch: Batch) -> None:
    """Against float32, the chunked gradients in bfloat16 are no further off than the plain ones are."""
    model: Any = _model(kind)
    _, exact = loss_and_gradients(plain_loss, model, batch)
    model = model.to(torch.bfloat16)
    must_match(model)
    value, plain = loss_and_gradients(plain_loss, model, batch)
    found_value, found = loss_and_gradients(partial(chunked_loss, chunk=4), model, batch)
    assert {g.dtype for g in found} == {torch.bfloat16}
    assert found_value.dtype == torch.float32
    torch.testing.assert_close(found_value, value, rtol=2e-3, atol=0)

    def error(gradients: list[Tensor]) -> float:
        return sum(float((g.float() - e).norm()) for g, e in zip(gradients, exact, strict=True))

    assert error(found) < 1.2 * error(plain)


def test_no_full_logits(batch: Batch) -> None:
    """The head never sees more tokens than a chunk."""
    model, rows = _model("llama"), []
    cast(nn.Module, model.get_output_embeddings()).register_forward_hook(
        lambda module, inputs, out: rows.append(out.shape)
    )
    chunked_loss(model, batch, chunk=4).backward()
    assert rows == [(4, 50)] * 3 + [(3, 50)]


def _scaled(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    small = {**SHAPE, "initializer_range": 0.001}  # logits so small that a loose tolerance would pass any scale
    if kind == "granite":
        return GraniteForCausalLM(GraniteConfig(**small, logits_scaling=8.0))
    if kind == "cohere":
        return CohereForCausalLM(CohereConfig(**small, logit_scale=0.0625))
    model = LlamaForCausalLM(LlamaConfig(**small))
    forward = model.forward

    def with_cap(*arguments: Any, **named: Any) -> Any:
        out = forward(*arguments, **named)
        out.logits = 30 * torch.tanh(out.logits / 30)
        return out

    model.__dict__["forward"] = with_cap
    return model


@pytest.mark.parametrize("kind", ["granite", "cohere", "an unknown cap"])
def test_unknown_logits_are_refused(kind: str) -> None:
    model = _scaled(kind)
    with pytest.raises(ModelError, match=r"chunked-loss: .* changes its logits"):
        must_match(model)
    hooks = cast(nn.Module, model.get_output_embeddings())._forward_hooks
    assert not hooks  # the model is left as it was


def test_the_check_leaves_the_model_as_it_was() -> None:
    model = _model("gemma2").train()
    state = torch.get_rng_state()
    must_match(model)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


def test_a_float16_model_of_a_large_vocabulary_is_taken() -> None:
    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=40000
    )
    must_match(LlamaForCausalLM(config).half())


@pytest.mark.parametrize("length", [4096, 3900])
@pytest.mark.parametrize("lora", [True, False], ids=["fused", "in chunks"])
def test_a_forecast_traces_a_few_chunks_and_counts_all(
    lora: bool, length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight chunks, the last one whole or not; by one kernel where the head is frozen."""
    monkeypatch.setattr("fitune_plugins.memory.chunked_loss.FUSED", 512)
    recipe = recipe_of(tmp_path, "llama", "chunked-loss", "expandable-segments", lora=lora, length=length, rows=1)
    shapes, card = shapes_of_recipe(recipe, 1), find_card("a10g")
    few = trace(recipe, shapes, card)
    monkeypatch.setattr(chunked_cross_entropy, "ALIKE", 10**9)
    every = trace(recipe, shapes, card)
    assert len(few.log.blocks) < len(every.log.blocks)
    assert few.flops_per_token == every.flops_per_token
    assert (few.work.micro, few.work.rest) == (every.work.micro, every.work.rest)
    taken, expected = (replay(list(one.log.sized()), expandable=True) for one in (few, every))
    assert (taken.peak_allocated, taken.peak_reserved) == (expected.peak_allocated, expected.peak_reserved)
