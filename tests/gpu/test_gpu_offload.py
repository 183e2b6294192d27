"""What leaves a CUDA device and comes back: `offload-checkpoints`, `host-embeddings`; and `tiled-mlp` beside them."""

from __future__ import annotations

import gc
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from fitune.memory.cards.cards import find_card
from fitune.memory.forecast import forecast
from fitune.memory.shapes import shapes_of_recipe
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry, write_recipe
from fitune.train.loop import train as steps_of
from fitune_plugins.memory.gradient_checkpointing import GradientCheckpointing, GradientCheckpointingOptions
from fitune_plugins.memory.host_copies import HostCopies
from fitune_plugins.memory.host_embeddings import HostEmbeddings
from fitune_plugins.memory.offload_checkpoints import CHECKPOINT, OffloadCheckpoints, OffloadCheckpointsOptions
from fitune_plugins.memory.tiled_mlp import TiledMlp, TiledMlpOptions
from support.tiny import assert_close, losses, parts_of, train, with_lora

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda", 0)
LENGTH = 4096


def _config() -> LlamaConfig:
    return LlamaConfig(
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=8,
        num_attention_heads=8,
        vocab_size=260,
        max_position_embeddings=LENGTH,
        bos_token_id=None,
        eos_token_id=257,
        pad_token_id=258,
        tie_word_embeddings=False,
    )


@pytest.fixture
def repeatable() -> Iterator[None]:
    """Flash attention's backward pass adds in an order of its own otherwise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)


def _model(*, dropout: float = 0.0) -> PreTrainedModel:
    torch.manual_seed(0)
    base: Any = LlamaForCausalLM._from_config(_config(), attn_implementation="eager")  # flash adds in any order
    adapted: Any = with_lora(base.to(CUDA, torch.bfloat16), "all-linear", dropout=dropout)
    model: PreTrainedModel = adapted.to(torch.bfloat16).train()
    return GradientCheckpointing(GradientCheckpointingOptions()).prepare(model)


def _steps(model: PreTrainedModel, number: int = 3) -> list[list[Tensor]]:
    """The gradients of some batches of uneven length, one behind the other and without a look at the card between."""
    torch.manual_seed(1)
    found = []
    for step in range(number):
        ids = torch.randint(0, 256, (1, LENGTH - 512 * step), device=CUDA)
        loss = cast(Any, model)(input_ids=ids, labels=ids, use_cache=False).loss
        found.append(list(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])))
    return found


@pytest.mark.usefixtures("repeatable")
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_offloaded_gradients_are_equal_bit_by_bit(dropout: float) -> None:
    model = _model(dropout=dropout)
    expected = _steps(model)
    found = _steps(OffloadCheckpoints(OffloadCheckpointsOptions()).prepare(model))
    for step, plain in zip(found, expected, strict=True):
        assert all(map(torch.equal, step, plain))


def test_what_is_offloaded_leaves_the_card() -> None:
    def requested() -> int:
        """Bytes as they were asked for. What counts as allocated are blocks, and a cached one that is up to 1 MiB
        larger than what is asked for is given whole: 8 MiB may count as 9 (`should_split`, CUDACachingAllocator).
        """
        return int(torch.cuda.memory_stats()["requested_bytes.all.current"])

    def kept(model: PreTrainedModel) -> int:
        ids = torch.randint(0, 256, (1, LENGTH), device=CUDA)
        before = requested()
        hidden = cast(Any, model).get_base_model().model(input_ids=ids, use_cache=False)[0]
        after = requested()
        hidden.sum().backward()
        return after - before

    model = _model()
    kept(model)  # makes workspaces
    plain = kept(model)
    offloaded = kept(OffloadCheckpoints(OffloadCheckpointsOptions()).prepare(model))
    inputs = 7 * LENGTH * 1024 * 2  # of eight layers, the last one's stays
    assert plain - offloaded == pytest.approx(inputs, rel=0.01)
    memory = next(
        layer.__dict__[CHECKPOINT].args[1]._copies.memory for layer in model.modules() if CHECKPOINT in layer.__dict__
    )
    assert memory.held == inputs
    assert all(block.is_pinned() for block in memory._free)


def test_a_copy_that_nobody_waited_for_spoils_no_memory() -> None:
    copies = HostCopies(CUDA, "test")
    size = 64 * 2**20
    sent = copies.send(torch.ones(size, dtype=torch.uint8, device=CUDA))
    sent.leave()
    for _ in range(20):
        sent.fetch()
        del sent  # as if the computation had failed here
        free = torch.zeros(size, dtype=torch.uint8, device=CUDA)
        sent = copies.send(torch.ones(size, dtype=torch.uint8, device=CUDA))
        sent.leave()
        assert not free.any()
        del free


@pytest.mark.usefixtures("repeatable")
def test_embeddings_on_the_host() -> None:
    model = _model()
    expected = _steps(model)
    table = cast(Any, model).get_input_embeddings().weight
    values = table.detach().clone()
    size = table.nbytes
    del table
    gc.collect()
    before = torch.cuda.memory_allocated()
    HostEmbeddings().prepare(model)
    gc.collect()
    assert before - torch.cuda.memory_allocated() == size
    embedding = cast(nn.Embedding, cast(Any, model).get_input_embeddings())
    assert embedding.weight.device == CUDA == cast(Any, model).device
    assert torch.equal(embedding.weight, values)
    assert torch.equal(embedding.state_dict()["weight"].cpu(), values.cpu())
    for step, plain in zip(_steps(model), expected, strict=True):
        assert all(map(torch.equal, step, plain))
    prompt = torch.arange(1, 9, device=CUDA)[None]
    assert cast(Any, model).eval().generate(input_ids=prompt, max_new_tokens=4, min_new_tokens=4).shape == (1, 12)


@pytest.mark.parametrize("tokens", [512, LENGTH])
def test_tiles(tokens: int) -> None:
    model = _model()
    expected = _steps(model)
    found = _steps(TiledMlp(TiledMlpOptions(tokens=tokens)).prepare(model))
    for step, plain in zip(found, expected, strict=True):
        assert_close([g.float() for g in step], [g.float() for g in plain], relative=0.05)


def _recipe(directory: Path, *strategies: str, quantized: bool = False) -> Path:
    listed = [{"use": name} for name in (*(["nf4"] if quantized else []), "gradient-checkpointing", *strategies)]
    path = write_recipe(
        directory,
        {
            "model": {"dtype": "bfloat16"},
            "adapter": {"targets": "all-linear", "r": 4},
            "memory": {"strategy": [*listed, {"use": "chunked-loss"}, {"use": "expandable-segments"}]},
            "train": {"length": LENGTH, "micro_batch": 2, "steps": 3},
        },
    )
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(_config())
    model.to(torch.bfloat16).save_pretrained(path.parent / "model")
    row = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!" * 2 * LENGTH}]}
    (path.parent / "data.jsonl").write_text((json.dumps(row) + "\n") * 8, encoding="utf-8")
    return path


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize(
    "strategies", [("offload-checkpoints",), ("offload-checkpoints", "tiled-mlp", "host-embeddings")]
)
def test_the_peak_is_the_forecast(strategies: tuple[str, ...], quantized: bool, tmp_path: Path) -> None:
    path = _recipe(tmp_path / "recipe", *strategies, quantized=quantized)
    recipe = read_recipe(path, open_registry())
    expected = forecast(recipe, shapes_of_recipe(recipe, 1), find_card("h100")).allocated
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()
    before = torch.cuda.memory_allocated()
    parts = parts_of(path)
    torch.cuda.reset_peak_memory_stats()
    list(steps_of(parts))
    assert torch.cuda.max_memory_allocated() - before == pytest.approx(expected, rel=0.05)


def test_a_run_learns_the_same(tmp_path: Path) -> None:
    plain = _recipe(tmp_path / "plain")
    found = _recipe(tmp_path / "found", "offload-checkpoints", "host-embeddings")
    train(plain, tmp_path / "run")
    train(found, tmp_path / "run with")
    assert losses(tmp_path / "run with") == pytest.approx(losses(tmp_path / "run"), rel=1e-3)
