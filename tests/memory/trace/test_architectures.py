"""Forecasts of decoders that transformers loads: every one is traced, or refused in words."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama import modeling_llama

from fitune import ModelError
from fitune.memory.cards.cards import find_card
from fitune.memory.shapes import shapes_of_recipe
from fitune.memory.trace.log import Kind, MemoryLog
from fitune.memory.trace.run import Trace, trace
from fitune.plugin.recipe import Recipe
from support.architectures import CHUNKED_LOSS, CONFIGS, GRADIENT_CHECKPOINTING, VOCABULARY, recipe_of

NOT_PACKED = {"mamba", "gpt_oss"}
"""They carry a state from token to token, or have an attention that is not known to keep to documents."""

STANDING: set[Kind] = {"weights", "adapter", "master weights", "optimizer state", "cuBLAS workspace"}
"""What outlives a step."""


def _trace(recipe: Recipe, card: str = "a10g") -> Trace:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return trace(recipe, shapes_of_recipe(recipe, 2), find_card(card))


def _kinds(log: MemoryLog) -> set[Kind]:
    return {block.kind for block in log.blocks}


def _left(log: MemoryLog) -> list[int]:
    """Blocks that are never given back."""
    left = set(range(1, len(log.blocks) + 1))
    for number in log.events:
        if number < 0:
            left.remove(-number)
    return sorted(left)


@pytest.mark.parametrize("name", CONFIGS)
def test_lora_is_traced(tmp_path: Path, name: str) -> None:
    found = _trace(recipe_of(tmp_path, name))
    kinds = _kinds(found.log)
    assert {"weights", "adapter", "master weights", "gradients", "optimizer state", "saved activations"} <= kinds
    assert "recomputed activations" not in kinds
    assert 0 < found.trainable < found.parameters / 4
    assert {found.log.blocks[n - 1].kind for n in _left(found.log)} <= STANDING


@pytest.mark.parametrize("name", CONFIGS)
def test_full_fine_tuning_with_gradient_checkpointing_is_traced(tmp_path: Path, name: str) -> None:
    found = _trace(recipe_of(tmp_path, name, GRADIENT_CHECKPOINTING, lora=False))
    again = {block.module for block in found.log.blocks if block.kind == "recomputed activations"}
    assert again
    assert all(any(part.isdigit() for part in module.split(".")) for module in again), (
        "it is layers that are recomputed"
    )
    assert found.trainable == found.parameters


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in NOT_PACKED])
def test_packed_rows_and_chunked_loss_are_traced(tmp_path: Path, name: str) -> None:
    found = _trace(recipe_of(tmp_path, name, GRADIENT_CHECKPOINTING, CHUNKED_LOSS, packed=True, length=1024, rows=1))
    assert any("documents are kept apart" in notice for notice in found.notices)
    loss = [block.bytes for block in found.log.blocks if block.kind == "loss"]
    assert 512 * VOCABULARY * 4 <= max(loss) < 1023 * VOCABULARY * 4, "a chunk of logits, never all"


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3_text", "mixtral", "deepseek_v2", "gpt_oss", "falcon"])
def test_evaluation_and_generation_are_traced(tmp_path: Path, name: str) -> None:
    found = _trace(recipe_of(tmp_path, name, evaluates=True, generates=True))
    blocks = [block for block in found.log.blocks if block.phase == "evaluation"]
    assert any(block.kind == "loss" and block.shape[-1:] == (VOCABULARY,) for block in blocks)
    assert any(block.kind == "key-value cache" for block in blocks)
    last = [block for block in blocks if block.kind == "loss" and block.bytes == 2 * 1 * VOCABULARY * 2]
    assert len(last) >= 2, "the logits of the last token alone: after the prompt, and after one token more"


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_types_and_dropout_are_traced(tmp_path: Path, dtype: str) -> None:
    found = _trace(recipe_of(tmp_path, "llama", GRADIENT_CHECKPOINTING, dtype=dtype, dropout=0.05))
    masks = [b for b in found.log.blocks if b.operation == "aten.native_dropout.default" and b.dtype == "bool"]
    assert masks
    assert all(mask.bytes == 2 * 64 * (128 if "down_proj" in mask.module else 64) for mask in masks)
    assert ("master weights" in _kinds(found.log)) == (dtype == "float16")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_adapters_on_experts_are_traced_in_every_type(tmp_path: Path, name: str, dtype: str) -> None:
    found = _trace(recipe_of(tmp_path, name, targets='"all-linear"', dtype=dtype))
    of_experts = [b for b in found.log.blocks if b.kind == "adapter" and 4 * 4 in b.shape]  # rank 4, four of them
    assert len(of_experts) >= 4
    assert all(block.dtype == dtype for block in of_experts)
    (grouped,) = {b.dtype for b in found.log.blocks if b.operation == "aten._grouped_mm.default"}
    assert grouped == dtype
    assert {found.log.blocks[n - 1].kind for n in _left(found.log)} <= STANDING


@pytest.mark.parametrize("name", ["gpt2", "jetmoe", "megatron-bert", "roformer", "xlm"])
def test_what_asks_for_values_that_change_nothing_is_traced(tmp_path: Path, name: str) -> None:
    """GPT-2 warns of padding where it sees a pad token; JetMoE splits its rows by expert, one of which may take all;
    encoders ask whether their mask leaves a token out; XLM asserts that its rows are no longer than they are.
    """
    found = _trace(recipe_of(tmp_path, name))
    assert {"adapter", "saved activations", "loss"} <= _kinds(found.log)


def test_experts_are_multiplied_in_groups_where_the_card_can(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "mixtral", lora=False)
    on_ampere = {block.operation for block in _trace(recipe, "a10g").log.blocks}
    on_turing = {block.operation for block in _trace(recipe, "t4").log.blocks}
    assert "aten._grouped_mm.default" in on_ampere - on_turing
    assert "transformers.grouped_mm_fallback.default" in on_turing - on_ampere


_plain = cast(Callable[[nn.Module, Tensor], Tensor], modeling_llama.LlamaMLP.forward)


def _asks_a_value(hidden: Tensor) -> Tensor:
    return hidden * 2 if hidden.sum().item() > 0 else hidden


def _compares_what_no_topk_gave(hidden: Tensor) -> Tensor:
    mask = torch.nn.functional.one_hot(hidden[..., 0].long(), num_classes=4)
    return hidden[torch.where(mask[..., 0])]


def _asserts_what_is_wrong(hidden: Tensor) -> Tensor:
    assert hidden.sum().item() > 1, "no sum"
    return hidden


def _finds_tokens(hidden: Tensor) -> Tensor:
    return hidden.index_add(1, torch.nonzero(hidden[0, :, 0])[:, 0], hidden)


def _mixes_devices(hidden: Tensor) -> Tensor:
    return hidden + torch.ones(hidden.shape, device="cpu")


@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (_asks_a_value, "aten._local_scalar_dense.default"),
        (_finds_tokens, "aten.nonzero.default"),
        (_compares_what_no_topk_gave, "aten.nonzero.default"),
        (_mixes_devices, "aten.add.Tensor"),
    ],
)
@pytest.mark.parametrize("strategies", [(), (GRADIENT_CHECKPOINTING,)])
def test_what_cannot_be_traced_is_refused_in_words(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: Callable[[Tensor], Tensor],
    operation: str,
    strategies: tuple[str, ...],
) -> None:
    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", lambda self, x: function(_plain(self, x)))
    with pytest.raises(ModelError) as caught:
        _trace(recipe_of(tmp_path, "llama", *strategies))
    assert "LlamaForCausalLM: its model.layers.0.mlp calls " in caught.value.message
    assert f"{operation}, which cannot be traced without values: " in caught.value.message
    assert caught.value.__cause__ is not None
    assert len(caught.value.lines) == 1


@pytest.mark.parametrize("name", ["dbrx", "longcat_flash", "jetmoe"])
def test_experts_in_a_loop_take_the_most_that_they_can_and_say_so(tmp_path: Path, name: str) -> None:
    """Which experts have tokens, and how many, only values say: two have all tokens here, two a single one, and those
    of LongCat that compute nothing too.
    """
    found = _trace(recipe_of(tmp_path, name, lora=False))
    assert any("the most that there can be" in notice for notice in found.notices)
    if name != "jetmoe":
        tokens = [b.shape[0] for b in found.log.blocks if b.operation == "aten.nonzero.default" and b.shape[1:] == (2,)]
        others = 2 if name == "dbrx" else 4
        assert tokens == [128, 128, *[1] * others] * (len(tokens) // (2 + others))


def test_what_is_known_whatever_the_values_says_nothing_of_a_bound(tmp_path: Path) -> None:
    assert not any("the most that there can be" in notice for notice in _trace(recipe_of(tmp_path, "mixtral")).notices)


def test_what_no_answer_makes_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", lambda self, x: _asserts_what_is_wrong(_plain(self, x)))
    with pytest.raises(ModelError, match=r"its model\.layers\.0\.mlp cannot be traced without values: no sum"):
        _trace(recipe_of(tmp_path, "llama"))


def test_a_failure_in_the_backward_pass_names_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, hidden: Tensor) -> Tensor:
            return hidden.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad * grad.max().item()

    apply: Callable[[Tensor], Tensor] = Fails.apply
    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", lambda self, x: apply(_plain(self, x)))
    with pytest.raises(ModelError, match=r"its model\.layers\.1\.mlp calls aten\._local_scalar_dense\.default"):
        _trace(recipe_of(tmp_path, "llama"))


def test_an_error_between_operations_names_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: nn.Module, x: Tensor) -> Tensor:
        raise ValueError("no such expert\nat all")

    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", fails)
    with pytest.raises(ModelError, match=r"its model\.layers\.0\.mlp cannot be traced without values: no such expert$"):
        _trace(recipe_of(tmp_path, "llama"))
