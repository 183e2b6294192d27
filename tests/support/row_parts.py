"""What a process of several does to show that parts of rows are rows: `Forks` have it done in place of `ft`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest
import torch
import torch.distributed as dist
from transformers import MambaConfig, MambaForCausalLM, PreTrainedModel

from fitune import MemoryStrategy, ModelError, Plan
from fitune.compose.context_parallel import part_of, split_rows
from fitune.compose.model import Strategies
from fitune.plugin.recipe import Use
from support.blows import join
from support.packed import LOSSES, REGISTRY, batch_of, checkpointed, documents, tiny, two_rows
from support.tiny import assert_close, loss_and_gradients

FAMILIES = {2: ("llama", "mistral", "qwen2", "gemma3", "phi3", "deepseek-v3"), 4: ("llama", "qwen3")}
"""Those of `support.packed` that so many processes try, whose attention is torch's: of one length and of windows, of
one head of keys or several, latent, with routed experts.
"""

REFUSED: dict[str, tuple[str, Callable[[], PreTrainedModel]]] = {
    "gemma2": ('computes its attention by "eager"', lambda: tiny("gemma2")),
    "convolutions": ("has convolutions over tokens", lambda: _with_convolution()),
    "mamba": ('has layer 0 ."linear_attention".', lambda: MambaForCausalLM(MambaConfig(vocab_size=50, hidden_size=16))),
    "heads": ("has 3 heads of attention", lambda: tiny("llama", num_attention_heads=3, hidden_size=24)),
    "positions": (
        "rotary positions that depend on how long a row is",
        lambda: tiny("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
    ),
    "neighbours": ("something in it but attention looks at tokens", lambda: _with_neighbours()),
    "call": ("row_begin", lambda: _without_arguments()),
}
"""Why a model is refused, and one that is; the last but one by its results alone, the last since it cannot be told."""


def compare(board: memoryview, rank: int, processes: int, port: int) -> NoReturn:
    """Compute loss and gradients of rows whole, and then in parts; prints each family that is equal, and ends."""
    with _group(board, rank, processes, port):
        for family in FAMILIES[processes]:
            _must_be_equal(family, {"num_attention_heads": 4, "num_key_value_heads": 2} if processes > 2 else {})
            print(f"equal: {family}")
    sys.exit(0)


def refuse(board: memoryview, rank: int, processes: int, port: int) -> NoReturn:
    """Have models refused, all processes together; prints why, and ends."""
    with _group(board, rank, processes, port):
        for name, (why, make) in REFUSED.items():
            with pytest.raises(ModelError, match=why):
                _split(make(), processes)
            print(f"refused: {name}")
    sys.exit(0)


def _must_be_equal(family: str, heads: dict[str, Any]) -> None:
    """The sum over processes of losses and gradients of parts, to what rows give: padded ones, and packed ones."""
    rows = batch_of(documents([21, 9]), 22)
    for name, batch in (("chunked", rows), ("plain", two_rows())):
        value, gradients = loss_and_gradients(LOSSES[name], tiny(family, **heads), batch)
        model = tiny(family, **heads)
        strategies = _split(model, dist.get_world_size())
        mine, parts = loss_and_gradients(LOSSES[name], checkpointed(model), part_of(strategies)(batch))
        for tensor in (mine, *parts):
            dist.all_reduce(tensor)
        assert mine.item() == pytest.approx(value.item(), rel=1e-5), (family, name)
        assert_close(parts, gradients, relative=1e-4)


def _split(model: PreTrainedModel, processes: int) -> Strategies:
    """Have a model compute parts of rows, by the strategy, as a run does."""
    record = REGISTRY.find(MemoryStrategy, "context-parallel")
    strategy = record.make(record.options())
    strategies = ((Use(record=record, options=record.options()), strategy),)
    plan = strategy.plan(Plan(processes=processes))
    split_rows(strategies, plan, model, torch.device("cpu"))
    return strategies


def _with_neighbours() -> PreTrainedModel:
    """A model one of whose layers looks at the token before without being told to be one that does."""
    model = tiny("llama")
    layers: Any = model.base_model.layers
    layers[0].mlp.register_forward_pre_hook(lambda module, args: (args[0].roll(1, dims=1),))
    return model


def _with_convolution() -> PreTrainedModel:
    """A model one of whose layers has a convolution, whatever it does with it."""
    model = tiny("llama")
    layers: Any = model.base_model.layers
    layers[1].convolution = torch.nn.Conv1d(16, 16, 3)
    return model


def _without_arguments() -> PreTrainedModel:
    """A model that takes no argument which it does not know."""
    model = tiny("llama")
    inner: Any = model.base_model
    forward = inner.forward

    def strict(**named: Any) -> Any:
        if "row_begin" in named:
            raise TypeError("row_begin is not known")
        return forward(**named)

    inner.forward = strict
    return model


@contextlib.contextmanager
def _group(board: memoryview, rank: int, processes: int, port: int) -> Iterator[None]:
    join(board, rank, processes, port)
    dist.init_process_group("gloo")
    yield
    dist.destroy_process_group()
