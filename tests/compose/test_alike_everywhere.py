"""What trains begins alike in every process, however it lies in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from fitune import MemoryStrategy, NoOptions, Strategy, hookimpl
from fitune.compose import reading
from fitune.compose.model import planned
from fitune.compose.reading import make_model
from fitune.plugin.recipe import Recipe
from fitune.plugin.timings import Timings
from fitune.testing import open_registry


class _Turned(Strategy):
    def prepare(self, model: Any) -> Any:
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.dim() == 2:
                parameter.data = parameter.data.t().contiguous().t()
        return model


class _Plugin:
    @hookimpl
    def ft_memory_strategies(self) -> Iterable[MemoryStrategy[NoOptions]]:
        yield MemoryStrategy(name="turned", summary="x", options=NoOptions, make=lambda _: _Turned())


@pytest.mark.parametrize("strategies", ["", '{use="turned"}'])
def test_it_takes_the_first_process_numbers(
    strategies: str, read: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """NCCL takes dense rows alone, and says "Tensors must be contiguous" otherwise."""
    sent: list[Tensor] = []

    def broadcast(tensor: Tensor, from_process: int) -> None:
        assert from_process == 0
        assert tensor.is_contiguous()
        sent.append(torch.rand_like(tensor))
        tensor.copy_(sent[-1])

    monkeypatch.setattr(reading, "broadcast", broadcast)
    recipe = read(f"memory.strategy=[{strategies}]", registry=open_registry(_Plugin()))
    made, plan = planned(recipe, gpu=False)
    second = cast(Accelerator, SimpleNamespace(device=torch.device("cpu"), num_processes=2))
    model = make_model(recipe, made, plan, second, Timings())
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) == len(sent) > 0
    assert all(torch.equal(one, other) for one, other in zip(trained, sent, strict=True))
    assert all(p.is_contiguous() for p in trained) is not bool(strategies)
