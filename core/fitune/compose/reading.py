"""Who reads the model of a run, and what becomes of it: on the device, or, where processes share it out, on hosts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, set_seed
from torch import nn

from fitune.compose.calling import call_plugin
from fitune.compose.model import Strategies, adapted, base_model, built, prepared
from fitune.compose.shards import give_room, is_sharded
from fitune.compose.together import together
from fitune.compose.weights import weights_to_blame
from fitune.data.prepare import UNWATCHED, Watch
from fitune.errors import FtError
from fitune.plugin.mapped import mapped_weights
from fitune.plugin.model import unwrapped
from fitune.plugin.recipe import Recipe
from fitune.plugin.strategy import Plan
from fitune.plugin.timings import Timings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HOST = torch.device("cpu")

READ = "_fitune_read"
"""The attribute of a model that holds what is told of how processes read it."""

ALL = "weights: each process reads all of them: the loader cannot build its model without (ModelLoader.build_model)"
EACH = "weights: each process reads its own rows of the files"
FIRST = "weights: the first process reads all of them, which its host must have memory for, and sends them: "


def make_model(
    recipe: Recipe,
    strategies: Strategies,
    plan: Plan,
    accelerator: Accelerator,
    timings: Timings,
    start: Path | None = None,
    watch: Watch = UNWATCHED,
) -> PreTrainedModel:
    """The model with its adapter, changed by the strategies; what trains is equal in every process, and is what was
    saved in the directory `start`, where one is given. Who watches sees it shared out.
    """
    set_seed(recipe.general.seed)  # before the adapter draws its first weights
    base, said = base_of(recipe, plan, accelerator)
    timings.done("weights")
    with weights_to_blame(base):
        model = adapted(recipe, strategies, base, start)
        if plan.sharded:
            together().meet()  # behind this, one that has failed would be waited for
        with contextlib.ExitStack() as stack:
            if plan.sharded:
                stack.enter_context(together().cut_off())
                stack.enter_context(watch("weights", SharedOut(model)))
            model = prepared(strategies, model)
    setattr(unwrapped(model), READ, said)
    if accelerator.num_processes > 1:
        together().meet()  # none waits for one that could not load
        for parameter in (p for p in model.parameters() if p.requires_grad and not is_sharded(p)):
            dense = parameter.data.contiguous()  # NCCL takes no other; strategies may lay a matrix the other way round
            broadcast(dense, from_process=0)
            parameter.data.copy_(dense)
    return model


def base_of(recipe: Recipe, plan: Plan, accelerator: Accelerator) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """The base model on the device; or, where it is to be shared out, on the hosts. And what is told of that.

    Where the first process has it in files that are mapped into memory, of which nothing is read until somebody looks
    at it, the others have it so, too, if they find the same. Else it is on the host of the first, and in others with
    room for weights that nobody has written to, which takes no memory, if its loader can build it so.
    """
    if not plan.sharded:
        return base_model(recipe, plan, accelerator.device), ()
    if recipe.model.record.build_model is None:
        return base_model(recipe, plan, HOST), (ALL,)
    model, mark = None, ""
    if accelerator.is_main_process:
        model = base_model(recipe, plan, HOST)
        mark = _mark(recipe) if _in_files(model) else NOT_IN_FILES
    together().meet()  # behind the first, whose error would be waited for
    if not accelerator.is_main_process:
        mark = _mark(recipe)
    why = _not_by_each(together().texts(mark))
    if not why:
        model = model or _found_in_files(recipe, plan)
        (lacking,) = together().meet(model is None)
        why = "not every process can map its files into memory" if lacking else ""
    if why and not accelerator.is_main_process:
        model = built(recipe)
        give_room(model)
    assert model is not None
    return model, (FIRST + why if why else EACH,)


NOT_IN_FILES = "not in files"
"""What the first process says in place of a digest."""


def told_of_reading(model: PreTrainedModel) -> tuple[str, ...]:
    """What a person is told of how processes read a model that they share out."""
    said: tuple[str, ...] = getattr(unwrapped(model), READ, ())
    return said


class SharedOut(Mapping[str, int]):
    """How much of a model is shared out by now, for whoever watches it from another thread, and of how much."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = list(model.modules())
        self._all = self._size(lambda parameter: True)

    def __getitem__(self, name: str) -> int:
        """MiB."""
        return {"MiB": self._size(is_sharded), "of": self._all}[name]

    def __iter__(self) -> Iterator[str]:
        """By what they are called."""
        return iter(("MiB", "of"))

    def __len__(self) -> int:
        """There are two."""
        return 2

    def _size(self, counts: Callable[[nn.Parameter], bool]) -> int:
        held = (p for module in self._modules for p in list(module._parameters.values()) if p is not None)
        return sum(p.numel() * p.element_size() for p in held if counts(p)) >> 20


def _in_files(model: PreTrainedModel) -> bool:
    """Whether all of its weights lie in files: those that do not would be in the memory of each process."""
    found = mapped_weights(model)
    return all(name in found for name, _ in model.named_parameters())


def _mark(recipe: Recipe) -> str:
    """Which weights a process would load; empty where that cannot be told, or they are not there."""
    look = recipe.model.record.fingerprint
    try:
        return "" if look is None else call_plugin(recipe.model, look, recipe.model.options) or ""
    except FtError:
        return ""


def _not_by_each(marks: list[str]) -> str:
    """Why not every process can read its own part, by what each has said; empty where it can."""
    if marks[0] == NOT_IN_FILES:
        return "they are not as in its files (another dtype, or converted), or those are no safetensors"
    if not marks[0]:
        return "its loader cannot tell which weights it reads (ModelLoader.fingerprint)"
    return "" if all(mark == marks[0] for mark in marks) else "not every process finds the same files"


def _found_in_files(recipe: Recipe, plan: Plan) -> PreTrainedModel | None:
    """The model as the first process has it; None where it cannot be had so."""
    try:
        model = base_model(recipe, plan, HOST)
    except FtError:
        return None
    return model if _in_files(model) else None
