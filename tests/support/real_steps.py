"""A run that is traced, and the same with values on the CPU: what the two log must be the same."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import accumulate
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from fitune import IGNORED, Batch
from fitune.compose.model import adapted, built, planned
from fitune.memory.shapes import Shapes, shapes_of_recipe
from fitune.memory.trace import tracer as trace
from fitune.memory.trace.generation import generate
from fitune.memory.trace.log import MemoryLog
from fitune.memory.trace.meta import DEVICE, tensors_of
from fitune.memory.trace.modules import ModuleTracker
from fitune.memory.trace.patches import Known, as_on_card, as_with_values, replaced
from fitune.memory.trace.processes import as_processes, as_sharded
from fitune.memory.trace.run import follow
from fitune.memory.trace.tracer import Tracer, without_values
from fitune.plugin.recipe import Recipe

Event = tuple[str, str, int]
"""("take" or "give back", operation, bytes)."""


class HostBatch(Batch):
    """A batch that is copied to its device even if that is the CPU, where its tensors are."""

    def to(self, device: torch.device, *, pin: bool = False) -> Batch:
        """The copy."""

        def copied(tensor: Tensor) -> Tensor:
            return torch.empty_like(tensor, device=device).copy_(tensor)

        positions = None if self.positions is None else copied(self.positions)
        extras = {name: copied(extra) for name, extra in self.extras.items()}
        moved = replace(self, input_ids=copied(self.input_ids), labels=copied(self.labels), extras=extras)
        if not self.lengths:
            return replace(moved, positions=positions)
        ends = copied(torch.tensor((0, *accumulate(self.lengths)), dtype=torch.int32))
        return replace(moved, positions=positions, ends=ends, longest=max(self.lengths))


def both_logs(recipe: Recipe, processes: int = 1, micro_batches: int = 2) -> tuple[MemoryLog, MemoryLog]:
    """Without values, and with random ones, of the first of so many processes; so many micro-batches to a step."""
    shapes = _with_values(shapes_of_recipe(recipe, micro_batches))
    with as_processes(processes):
        return _log(recipe, shapes, processes, real=False), _log(recipe, shapes, processes, real=True)


def both_generations(recipe: Recipe, rows: int, prompt: int, new_tokens: int) -> tuple[MemoryLog, MemoryLog]:
    """Of answers to prompts, without values, and by transformers' own `generate`; all but one prompt are padded."""
    model = built(recipe)
    forecast = Tracer(None, scratch={}, cublas_workspace=1)
    with _as_on_card(), as_with_values() as known, forecast:
        for tensor in tensors_of(model):
            forecast.adopt(tensor)
        forecast.enter("evaluation", 0)
        known.padded = rows > 1
        generate(model, rows, prompt, new_tokens, forecast, DEVICE)
    model = _on_cpu(model)
    mask = torch.ones((rows, prompt), dtype=torch.int64)
    mask[1:, :5] = 0
    config = GenerationConfig(do_sample=False, max_new_tokens=new_tokens, min_new_tokens=new_tokens, pad_token_id=0)
    real = Tracer(None, scratch={}, cublas_workspace=1, on_card=_is_on_cpu)
    with _as_on_card(), torch.no_grad(), real:
        for tensor in tensors_of(model):
            real.adopt(tensor)
        real.enter("evaluation", 0)
        cast(Any, model).generate(input_ids=mask.clone(), attention_mask=mask.clone(), generation_config=config)
    return forecast.log, real.log


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Composed of other operations: the kernels of a card have no twins on the CPU."""
    found: tuple[Tensor, Tensor] = torch.ops.aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )
    return found[0]


@contextlib.contextmanager
def _as_on_card() -> Iterator[None]:
    """As on a card, but for the kernels that it alone has, and for what they do in place."""
    with (
        as_on_card((8, 6)),
        replaced(F, "scaled_dot_product_attention", _attention),
        replaced(trace, "AS_KERNEL", {}),
    ):
        yield


def events(log: MemoryLog) -> list[Event]:
    """What happens, so that equal events have an equal peak; scalars that are made on the host are left out."""
    found = []
    for number in log.events:
        block = log.blocks[abs(number) - 1]
        if block.operation != "aten.lift_fresh.default":
            found.append(("take" if number > 0 else "give back", block.operation, block.bytes))
    return found


def _with_values(shapes: Shapes) -> Shapes:
    def filled(batch: Batch) -> Batch:
        ids = torch.randint(0, 256, batch.input_ids.shape, generator=torch.Generator().manual_seed(0))
        labels = torch.where(batch.labels == IGNORED, batch.labels, ids)
        given = {field.name: getattr(batch, field.name) for field in fields(batch)}
        return HostBatch(**{**given, "input_ids": ids, "labels": labels})

    evaluation = None if shapes.evaluation is None else filled(shapes.evaluation)
    return replace(shapes, training=tuple(map(filled, shapes.training)), evaluation=evaluation)


def _log(recipe: Recipe, shapes: Shapes, processes: int, *, real: bool) -> MemoryLog:
    strategies, plan = planned(recipe, gpu=True, processes=processes)
    model = adapted(recipe, strategies, _on_cpu(built(recipe)) if real else built(recipe))
    modules = ModuleTracker(model)
    tracer = Tracer(modules, scratch={}, cublas_workspace=1, on_card=_is_on_cpu if real else without_values)
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(_as_on_card())
        known = Known() if real else stack.enter_context(as_with_values())
        stack.enter_context(modules.watch())
        where = torch.device("cpu") if real else DEVICE
        stack.enter_context(as_sharded(tracer, where))
        ended = follow(recipe, strategies, replace(plan, pin_memory=False), model, shapes, tracer, known, where)
        log = copy.copy(tracer.log)
        log.events = list(log.events)
        del ended  # what trains is in a circle with its optimizer, and given back whenever the collector comes by
    return log


def _is_on_cpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def _on_cpu(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(model.config, dtype=model.dtype)
    return cast(PreTrainedModel, made.eval())
