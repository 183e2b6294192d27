"""The loss by one kernel equals the chunked and the plain one: value, gradient, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from fitune import Batch, Plan
from fitune.compose.loss import plain_log_probs, plain_loss
from fitune.memory.cards.cards import find_card
from fitune.memory.forecast import forecast
from fitune.plugin.recipe import Recipe
from fitune_plugins.memory.chunked_cross_entropy import chunked_loss
from fitune_plugins.memory.chunked_loss import ChunkedLoss, ChunkedLossOptions
from fitune_plugins.memory.fused_cross_entropy import ROUNDED, fused_log_probs, fused_loss, suits
from support.tiny import assert_close, loss_and_gradients, make_batch, with_lora
from support.traces import shapes

SHAPE: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 50,
    "max_position_embeddings": 256,
    "initializer_range": 0.5,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
NOTHING = -100


def _model(kind: str = "llama") -> Any:
    torch.manual_seed(0)
    if kind == "capped":
        model: Any = Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=3.0))
    else:
        model = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=kind == "tied"))
    return with_lora(model, "q_proj", "down_proj").train().double()


def _row(tokens: int, *, seed: int, ignored: Callable[[int], bool] = lambda at: False) -> tuple[list[int], list[int]]:
    ids = torch.randint(1, 50, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist()
    return ids, [NOTHING if ignored(at) else one for at, one in enumerate(ids)]


BATCHES: dict[str, Batch] = {
    "one row": make_batch([_row(9, seed=1)]),
    "one row, answers alone": make_batch([_row(9, seed=1, ignored=lambda at: at < 5)]),
    "every other": make_batch([_row(20, seed=2, ignored=lambda at: at % 2 == 0)]),
    "the last alone": make_batch([_row(20, seed=2, ignored=lambda at: at < 19)]),
    "one at the first, which is none": make_batch([_row(8, seed=3, ignored=lambda at: at > 0), _row(8, seed=4)]),
    "several": make_batch([_row(n, seed=n) for n in (9, 5, 12)]),
    "several, all of a length": make_batch([_row(12, seed=n) for n in (1, 2, 3)]),
    "one without a target": make_batch([_row(9, seed=5, ignored=lambda at: True), _row(6, seed=6)]),
    "without any target": make_batch([_row(9, seed=5, ignored=lambda at: True)]),
    "more than are rounded to": make_batch([_row(120, seed=7), _row(40, seed=8)]),
}


@pytest.mark.parametrize("kind", ["llama", "tied", "capped"])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("chunk", [1, 7, 2048])
def test_loss_and_gradients_are_the_same(kind: str, batch: str, chunk: int) -> None:
    model, rows = _model(kind), BATCHES[batch]

    def fused(model: nn.Module, batch: Batch) -> Tensor:
        return fused_loss(model, batch, chunk=chunk)

    def chunked(model: nn.Module, batch: Batch) -> Tensor:
        return chunked_loss(model, batch, chunk=chunk)

    found, grads = loss_and_gradients(fused, model, rows)
    assert found.dtype == torch.float32
    if not rows.targets:
        assert not found
        assert not any(grad.any() for grad in grads)
        return
    for other in (chunked, plain_loss):
        loss, wanted = loss_and_gradients(other, model, rows)
        torch.testing.assert_close(found, loss, rtol=1e-6, atol=0)
        assert_close(grads, wanted, relative=1e-5)


LONG: dict[str, Callable[[int], bool]] = {
    "answers alone": lambda at: at < 100,
    "prompts at the end": lambda at: at >= 60,
    "every other": lambda at: at % 2 == 0,
    "the first and the last": lambda at: 1 < at < 200,
}


@pytest.mark.parametrize("which", LONG)
@pytest.mark.parametrize("chunk", [50, 128, 2048])
def test_targets_that_are_picked_out(which: str, chunk: int) -> None:
    """And whose gradients are put where they belong, through places that others leave."""
    model, rows = _model(), make_batch([_row(n, seed=n, ignored=LONG[which]) for n in (250, 202)])
    assert rows.targets < rows.labels.numel() - ROUNDED

    def fused(model: nn.Module, batch: Batch) -> Tensor:
        return fused_loss(model, batch, chunk=chunk)

    found, grads = loss_and_gradients(fused, model, rows)
    loss, wanted = loss_and_gradients(plain_loss, model, rows)
    torch.testing.assert_close(found, loss, rtol=1e-6, atol=0)
    assert_close(grads, wanted, relative=1e-5)

    scale = torch.randn(rows.labels.shape, generator=torch.Generator().manual_seed(1))
    probs, grads = loss_and_gradients(lambda m, b: (fused_log_probs(m, b, chunk=chunk) * scale).sum(), model, rows)
    expected, wanted = loss_and_gradients(lambda m, b: (plain_log_probs(m, b) * scale).sum(), model, rows)
    torch.testing.assert_close(probs, expected, rtol=1e-5, atol=0)
    assert_close(grads, wanted, relative=1e-5)


@pytest.mark.parametrize("objective", ["sft", "dpo"])
@pytest.mark.parametrize("tokens", [64, 2048])
def test_no_share_of_targets_takes_more_than_all(read: Callable[..., Recipe], objective: str, tokens: int) -> None:
    """A forecast counts each token as a target."""
    recipe = read(
        f'objective={{use="{objective}"}}',
        "train.length=512",
        f'memory.strategy=[{{use="gradient-checkpointing"}}, {{use="chunked-loss", tokens={tokens}}}]',
        'model.dtype="bfloat16"',
        *(['data.stage=[{use="preferences"}, {use="chat"}]'] if objective == "dpo" else []),
    )
    made, card = shapes(recipe), find_card("h100")

    def of_the_loss(targets: int) -> int:
        rows = replace(made, training=tuple(replace(batch, targets=targets) for batch in made.training))
        return next(peak.bytes for peak in forecast(recipe, rows, card).ledger.phases if peak.phase == "loss")

    most = of_the_loss(made.training[0].targets)
    assert all(of_the_loss(targets) <= most for targets in (509, 500, 384, 383, 100))


def test_more_targets_than_there_are() -> None:
    """As a forecast says that there may be, and with all rows, as where all may be targets."""
    model, batch = _model(), BATCHES["several"]
    wanted = loss_and_gradients(plain_loss, model, batch)
    everything = batch.labels.numel()
    for targets in (batch.targets + 3, everything - len(batch.labels), everything):
        more = Batch(input_ids=batch.input_ids, labels=batch.labels, targets=targets, tokens=batch.tokens)
        found = loss_and_gradients(lambda model, batch: fused_loss(model, batch, chunk=8), model, more)
        torch.testing.assert_close(found[0], wanted[0], rtol=1e-6, atol=0)
        assert_close(found[1], wanted[1])


def test_only_targets_pass_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """In few shapes."""
    from fitune_plugins.speed import kernels

    seen: list[int] = []
    compute = kernels.cross_entropy_

    def watched(logits: Tensor, labels: Tensor, cap: float) -> Tensor:
        seen.append(len(logits))
        return compute(logits, labels, cap)

    monkeypatch.setattr(kernels, "cross_entropy_", watched)
    model = _model()
    for first in (100, 150):  # 300 targets, and 200
        rows = [_row(250, seed=seed, ignored=range(first).__contains__) for seed in (1, 2)]
        fused_loss(model, make_batch(rows), chunk=2048)
    assert seen == [3 * ROUNDED, 2 * ROUNDED]


def test_an_evaluation_takes_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = _model(), BATCHES["several"]
    wanted = plain_loss(model, batch)
    products: list[str] = []
    monkeypatch.setattr(torch, "mm", lambda *_, **__: products.append("mm"))
    with torch.no_grad():
        found = fused_loss(model, batch, chunk=8)
    assert not found.requires_grad
    assert not products
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-6, atol=0)


def test_a_graph_that_is_kept_gives_its_gradient_twice() -> None:
    """And one that is scaled, a scaled one."""
    model, batch = _model(), BATCHES["several"]
    trained = [p for p in model.parameters() if p.requires_grad]
    loss = fused_loss(model, batch, chunk=8)
    first = torch.autograd.grad(loss, trained, retain_graph=True)
    again = torch.autograd.grad(loss, trained, retain_graph=True)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert_close(torch.autograd.grad(loss * 8, trained), [8 * one for one in first], relative=1e-12)


def _train_head(model: Any) -> None:
    model.get_output_embeddings().weight.requires_grad_()


def _hook_head(model: Any) -> None:
    model.get_output_embeddings().register_forward_hook(lambda *_: None)


def _change_head(model: Any) -> None:
    head = model.get_output_embeddings()
    head.__dict__["forward"] = head.forward


def _bias_head(model: Any) -> None:
    model.get_output_embeddings().bias = nn.Parameter(torch.ones(50), requires_grad=False)


@pytest.mark.parametrize("change", [None, _train_head, _hook_head, _change_head, _bias_head])
def test_heads_that_are_more_than_a_frozen_matrix_go_in_chunks(
    change: Callable[[Any], None] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fitune_plugins.memory import chunked_cross_entropy, fused_cross_entropy

    called: list[str] = []
    for module, name in ((chunked_cross_entropy, "chunked_loss"), (fused_cross_entropy, "fused_loss")):
        monkeypatch.setattr(module, name, lambda *_, name=name, chunk: called.append(f"{name} {chunk}"))
    model = _model()
    if change is not None:
        change(model)
    assert suits(model.get_output_embeddings()) is (change is None)
    for gpu in (True, False):
        plan = ChunkedLoss(ChunkedLossOptions()).plan(Plan(gpu=gpu))
        cast(Any, plan.loss)(model, BATCHES["several"])
    assert called == ["fused_loss 2048" if change is None else "chunked_loss 512", "chunked_loss 512"]


def test_an_adapter_on_the_head_goes_in_chunks() -> None:
    torch.manual_seed(0)
    model: Any = with_lora(cast(Any, LlamaForCausalLM(LlamaConfig(**SHAPE))), "lm_head")
    assert not suits(model.get_output_embeddings())
