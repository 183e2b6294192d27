"""Runs that run out of memory at chosen points, and what they go on with."""

from __future__ import annotations

import dataclasses
import re
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from fitune import MemoryStrategy, NoOptions, OptimizerSettings, Recipe, Recovery, Run, RunError, Strategy, hookimpl
from fitune.data.run_data import RunData
from fitune.memory.fit.refit import Composition
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry
from fitune.train.run import run

MESSAGE = "CUDA out of memory. Tried to allocate 172.00 MiB. GPU 0 has a total capacity of 22.30 GiB."
TRAP, CHECKPOINTING = {"use": "trap"}, {"use": "gradient-checkpointing"}


def fail(*_: object) -> None:
    """Run out of memory."""
    raise torch.OutOfMemoryError(MESSAGE)


class Trap(Strategy):
    """Runs out of memory where its plugin says."""

    def __init__(self, plugin: Traps) -> None:
        self.plugin = plugin

    def prepare(self, model: PreTrainedModel) -> PreTrainedModel:
        self.plugin.models.append(weakref.ref(model))
        self.plugin.spring("load")

        def forward(module: nn.Module, *_: object) -> None:
            self.plugin.spring("forward" if module.training else "evaluation")

        model.get_input_embeddings().register_forward_hook(forward)
        layer = next(p for p in model.parameters() if p.requires_grad)
        layer.register_hook(lambda grad: self.plugin.spring("backward"))
        return model

    def make_optimizer(
        self, parameters: Sequence[nn.Parameter], settings: OptimizerSettings
    ) -> torch.optim.Optimizer | None:
        if not self.plugin.optimizer:
            return None
        made = self.plugin.optimizer(parameters, settings)
        made.register_step_pre_hook(lambda *_: self.plugin.spring("before the optimizer"))
        made.register_step_post_hook(lambda *_: self.plugin.spring("after the optimizer"))
        return made


class Traps:
    """A plugin: strategy `trap`, which runs out of memory the n-th time that a point is reached."""

    def __init__(self, *points: tuple[str, int], optimizer: Callable[..., torch.optim.Optimizer] | None = None) -> None:
        self.points = set(points)
        self.counts: dict[str, int] = {}
        self.models: list[weakref.ref[PreTrainedModel]] = []
        self.recoveries: list[Recovery] = []
        self.optimizer = optimizer

    def spring(self, point: str) -> None:
        """Run out of memory, if it is time."""
        self.counts[point] = self.counts.get(point, 0) + 1
        if (point, self.counts[point]) in self.points:
            fail()

    @hookimpl
    def ft_memory_strategies(self) -> Iterable[MemoryStrategy[NoOptions]]:
        """Offer it."""
        yield MemoryStrategy(name="trap", summary="Fails", options=NoOptions, make=lambda options: Trap(self))

    @hookimpl
    def ft_recovered(self, run: Run, recovery: Recovery) -> None:
        """Keep it."""
        assert run.recipe.strategies
        self.recoveries.append(recovery)


@dataclasses.dataclass
class Refit:
    """Goes on with gradient checkpointing of one layer, then of two; then there is nothing left."""

    registry: Any
    traps: Traps
    calls: int = 0

    def __call__(self, asked: Recipe, used: Sequence[Composition], run_data: RunData, room: int) -> Composition:
        """The next composition. The model of the last one must be gone by now."""
        assert [model() for model in self.traps.models] == [None] * len(self.traps.models)
        assert len(used) == self.calls + 1
        self.calls += 1
        if self.calls > 2:
            raise RunError("nothing takes less")
        (checkpointing,) = (p.record for p in self.registry.provided if p.record.name == "gradient-checkpointing")
        use = dataclasses.replace(
            asked.strategies[0], record=checkpointing, options=checkpointing.options(layers=self.calls)
        )
        return Composition(recipe=dataclasses.replace(asked, strategies=(*asked.strategies, use)))


def run_trapped(recipe: Path, directory: Path, traps: Traps, *overrides: str, plugins: Sequence[object] = ()) -> Refit:
    """A run with these traps, which `Refit` goes on with less."""
    registry = open_registry(traps, *plugins)
    directory.mkdir(parents=True)
    refit = Refit(registry, traps)
    run(read_recipe(recipe, registry, overrides), registry, directory, refit=refit)
    return refit


def checkpointed(recovery: Recovery) -> int:
    """In how many layers the run goes on with gradient checkpointing."""
    (layers,) = re.findall(r'^{use = "gradient-checkpointing", layers = (\d+)', recovery.after[-1])
    return int(layers)
