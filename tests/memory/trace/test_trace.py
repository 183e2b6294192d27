"""What the tracer logs of a tiny Llama, against sizes computed by hand from its shapes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from fitune.compose.step import Phase
from fitune.memory.cards.cards import find_card
from fitune.memory.shapes import shapes_of_recipe
from fitune.memory.trace.log import Block, Kind, MemoryLog
from fitune.memory.trace.meta import DEVICE
from fitune.memory.trace.run import Trace, trace
from fitune.memory.trace.tracer import Tracer
from support.architectures import GRADIENT_CHECKPOINTING, recipe_of

LAYERS, HIDDEN, INNER, KEYS, VOCABULARY = 2, 64, 128, 32, 512
ROWS, LENGTH = 2, 64
TOKENS = ROWS * LENGTH
HALF, FLOAT = 2, 4
LAYER = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * KEYS + 3 * HIDDEN * INNER + 2 * HIDDEN
"""Parameters of a layer."""
MODEL = 2 * VOCABULARY * HIDDEN + LAYERS * LAYER + HIDDEN
LORA = LAYERS * 4 * (2 * 2 * HIDDEN + 2 * (HIDDEN + KEYS) + 3 * (HIDDEN + INNER))
"""Rank 4 on q, o; k, v; and three of the MLP."""
ROTARY = 2 * 8
"""Elements of the buffer of frequencies, and of its copy."""


def _traced(directory: Path, *strategies: str, accumulation: int = 1, **named: object) -> Trace:
    recipe = recipe_of(directory, "llama", *strategies, **named)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return trace(recipe, shapes_of_recipe(recipe, accumulation), find_card("a10g"))


def _of(log: MemoryLog, kind: Kind, *, step: int | None = None) -> list[Block]:
    return [b for b in log.blocks if b.kind == kind and b.operation != _WARM_UP and step in (None, b.step)]


_WARM_UP = "transformers' warm-up of the allocator"


def _bytes(blocks: Sequence[Block]) -> int:
    return sum(block.bytes for block in blocks)


def test_weights_adapter_masters_gradients_and_state_of_lora(tmp_path: Path) -> None:
    found = _traced(tmp_path)
    assert (found.parameters, found.trainable) == (MODEL + LORA, LORA)
    assert _bytes(_of(found.log, "weights")) == MODEL * HALF + ROTARY * FLOAT
    assert _bytes(_of(found.log, "adapter")) == LORA * HALF
    assert _bytes(_of(found.log, "master weights")) == LORA * FLOAT
    for step in (1, 2):
        gradients = _of(found.log, "gradients", step=step)
        assert _bytes([b for b in gradients if b.dtype == "bfloat16"]) == LORA * HALF
        assert _bytes([b for b in gradients if b.dtype == "float32"]) == LORA * FLOAT
    state = _of(found.log, "optimizer state")
    assert {block.step for block in state} == {1}, "the first step makes it"
    matrices = LAYERS * 7 * 2
    assert _bytes(state) == 2 * LORA * FLOAT + matrices * FLOAT, "two moments, and a count on the card for each"


def test_full_fine_tuning_in_float32_has_no_masters(tmp_path: Path) -> None:
    found = _traced(tmp_path, lora=False, dtype="float32")
    assert found.trainable == MODEL
    assert not _of(found.log, "master weights")
    assert not _of(found.log, "adapter")
    assert _bytes(_of(found.log, "gradients", step=2)) == MODEL * FLOAT


def test_tied_weights_are_one_block(tmp_path: Path) -> None:
    found = _traced(tmp_path, lora=False, changes={"tie_word_embeddings": True})
    assert _bytes(_of(found.log, "weights")) == (MODEL - VOCABULARY * HIDDEN) * HALF + ROTARY * FLOAT
    assert found.trainable == MODEL - VOCABULARY * HIDDEN


def _alive_when(log: MemoryLog, phase: Phase, kind: Kind) -> list[Block]:
    """Blocks of a kind that the second step's phase begins with."""
    start = next(start for start, name, step in log.phases if (name, step) == (phase, 2))
    alive: dict[int, Block] = {}
    for number in log.events[:start]:
        if number > 0:
            alive[number] = log.blocks[number - 1]
        else:
            del alive[-number]
    return [block for block in alive.values() if block.kind == kind]


def test_checkpointed_layers_keep_their_input_alone(tmp_path: Path) -> None:
    plain = _alive_when(_traced(tmp_path / "plain", lora=False).log, "backward", "saved activations")
    kept = _alive_when(
        _traced(tmp_path / "kept", GRADIENT_CHECKPOINTING, lora=False).log, "backward", "saved activations"
    )
    hidden = TOKENS * HIDDEN * HALF
    inputs = [block for block in kept if block.bytes == hidden]
    names = sorted(block.module for block in inputs if not block.module.endswith("norm"))
    assert names == ["model.embed_tokens", "model.layers.0"], "the last norm keeps a float32 copy, not the last output"
    assert not any(".mlp" in block.module or ".self_attn" in block.module for block in kept)
    of_mlp = [block for block in plain if ".mlp" in block.module]
    assert _bytes(of_mlp) == LAYERS * 4 * TOKENS * INNER * HALF, "gate, its activation, up, and their product"


def test_the_loss_is_what_stands_behind_the_last_layer(tmp_path: Path) -> None:
    log = _traced(tmp_path).log
    loss = _of(log, "loss", step=2)
    of_logits = [block for block in loss if block.shape[-1:] == (VOCABULARY,)]
    assert {block.phase for block in loss} == {"loss", "backward"}
    assert [(b.bytes, b.dtype) for b in of_logits if b.phase == "loss"][:3] == [
        (TOKENS * VOCABULARY * HALF, "bfloat16"),
        (ROWS * (LENGTH - 1) * VOCABULARY * FLOAT, "float32"),
        (ROWS * (LENGTH - 1) * VOCABULARY * FLOAT, "float32"),
    ], "the head's logits, their float32 copy, their log-softmax"


def test_two_micro_batches_add_to_the_same_gradients(tmp_path: Path) -> None:
    log = _traced(tmp_path, accumulation=2).log
    assert [(phase, step) for _, phase, step in log.phases].count(("forward", 2)) == 2
    gradients = _of(log, "gradients", step=2)
    assert _bytes([b for b in gradients if b.dtype == "bfloat16"]) == 2 * LORA * HALF
    assert _bytes([b for b in gradients if b.dtype == "float32"]) == LORA * FLOAT


@pytest.mark.parametrize("strategies", [(), (GRADIENT_CHECKPOINTING,)])
def test_modules_are_named_forward_backward_and_again(tmp_path: Path, strategies: tuple[str, ...]) -> None:
    log = _traced(tmp_path, *strategies, lora=False).log
    name = "model.layers.1.mlp.up_proj"
    products = [b for b in log.blocks if b.step == 2 and b.module == name and b.operation == "aten.mm.default"]
    forward = [b for b in products if b.phase == "forward"]
    backward = [b for b in products if b.kind == "activation gradients"]
    again = [b for b in products if b.kind == "recomputed activations"]
    assert [b.shape for b in forward] == [(TOKENS, INNER)]
    assert [b.shape for b in backward] == [(TOKENS, HIDDEN)]
    assert [b.shape for b in again] == ([(TOKENS, INNER)] if strategies else [])
    assert not [b for b in log.blocks if b.kind == "recomputed activations" and b.module.endswith("down_proj")], (
        "a layer's last product is not needed again"
    )
    of_weight = [b for b in log.blocks if b.step == 2 and b.module == name and b.kind == "gradients"]
    assert _bytes([b for b in of_weight if b.dtype == "bfloat16"]) == HIDDEN * INNER * HALF


def test_tensors_on_the_host_are_not_counted() -> None:
    tracer = Tracer(None, scratch={}, cublas_workspace=0)
    with tracer:
        host = torch.ones(1000)
        (host * 2).sum()
        card = torch.empty(1000, device=DEVICE)
        del card
    assert [block.bytes for block in tracer.log.blocks] == [4000]
    assert tracer.log.events == [1, -1]


def test_a_view_is_no_memory_and_an_alias_keeps_its_own() -> None:
    tracer = Tracer(None, scratch={}, cublas_workspace=0)
    with tracer:
        whole = torch.empty(10, 10, device=DEVICE)
        part = whole[2:4].t()
        del whole
        assert tracer.log.events == [1]
        del part
    assert tracer.log.events == [1, -1]


def test_retagged_blocks_say_what_they_are_for() -> None:
    tracer = Tracer(None, scratch={}, cublas_workspace=0)
    with tracer:
        cache = torch.empty(8, device=DEVICE)
        tracer.retag([cache[:4], None], "key-value cache")
    assert [block.kind for block in tracer.log.blocks] == ["key-value cache"]


def test_evaluation_keeps_nothing_for_a_backward_pass(tmp_path: Path) -> None:
    log = _traced(tmp_path, evaluates=True).log
    blocks = [block for block in log.blocks if block.phase == "evaluation"]
    assert {block.kind for block in blocks} == {"temporaries", "loss"}
    left = set(range(1, len(log.blocks) + 1)) - {-number for number in log.events if number < 0}
    assert not [number for number in left if log.blocks[number - 1].phase == "evaluation"]


def test_generation_ends_with_the_whole_cache(tmp_path: Path) -> None:
    log = _traced(tmp_path, generates=True).log
    cache = [block for block in log.blocks if block.kind == "key-value cache"]
    prompt, answer = LENGTH - 8, 8
    last = [block for block in cache if block.shape[-2:] == (prompt + answer - 1, 16)]
    assert _bytes(last) == 2 * LAYERS * 2 * KEYS * (prompt + answer - 1) * HALF, "keys and values of two rows"


def test_a_module_without_a_model_has_a_name_only_where_it_is_one() -> None:
    linear = nn.Linear(4, 4, device=DEVICE)
    tracer = Tracer(None, scratch={}, cublas_workspace=7)
    with tracer:
        linear(torch.empty(2, 4, device=DEVICE))
    assert {block.module for block in tracer.log.blocks} == {""}
    assert [block.bytes for block in tracer.log.blocks if block.kind == "cuBLAS workspace"] == [7]
