"""A run without values: composed as `ft run` would, then traced through two of its own optimizer steps.

Two, for only the first makes the optimizer's state, and only the second meets it. Of a step's micro-batches at most two
are traced, in the second step: the first has no gradients to stand beside, all later ones have.
"""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from fitune.compose import flash_attention
from fitune.compose.attention import assume_isolated
from fitune.compose.context_parallel import split_rows
from fitune.compose.encoders import must_not_say_so
from fitune.compose.masters import trainables_of
from fitune.compose.model import (
    Strategies,
    begun,
    built,
    called,
    changed,
    converted,
    distributed,
    loaded,
    make_optimizer,
    planned,
    told,
)
from fitune.compose.optimizer import Trainables
from fitune.compose.parts import make_step
from fitune.compose.positions import longest_row
from fitune.compose.step import Phase, Step
from fitune.compose.tokens import outgrown, tables, with_tokens
from fitune.memory.cards.cards import Card, is_here
from fitune.memory.kernels.scratch import cublas_workspace, scratch_table
from fitune.memory.shapes import Shapes
from fitune.memory.trace.generation import generate
from fitune.memory.trace.load import Read, load, load_in_shards
from fitune.memory.trace.log import MemoryLog
from fitune.memory.trace.meta import DEVICE, tensors_of
from fitune.memory.trace.modules import ModuleTracker
from fitune.memory.trace.patches import Known, as_on_card, as_with_values
from fitune.memory.trace.processes import Processes, as_processes, as_sharded
from fitune.memory.trace.recorder import TracedRecorder
from fitune.memory.trace.refusal import in_words
from fitune.memory.trace.shorten import shorten
from fitune.memory.trace.step_time import Work
from fitune.memory.trace.tracer import Tracer
from fitune.memory.trace.twins import in_place_of_kernels
from fitune.memory.trace.values import THE_MOST
from fitune.plugin.recipe import Evaluation, Recipe
from fitune.plugin.records import MemoryTwin
from fitune.plugin.strategy import Plan

ANY_FLASH = (
    "flash-attention: what is installed on the card's machine is not known here; packed rows are forecast as computed "
    "by FlashAttention 2, 3 or 4, whichever takes the most"
)
"""What is told where that makes a difference."""

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedConfig, PreTrainedModel

STEPS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A traced run."""

    log: MemoryLog
    plan: Plan
    """What the memory strategies decided."""
    trainable: int
    """Parameters that train."""
    parameters: int
    """Parameters in all."""
    flops_per_token: float
    """Floating-point operations of training for each token of a batch."""
    work: Work
    """Of the second step: all of what is done once, and of micro-batches as many as were traced."""
    micro_batches: int
    """How many these are: those that are replayed are not."""
    config: PreTrainedConfig
    """Of the model."""
    notices: tuple[str, ...] = ()
    """What the forecast assumes."""


def trace(
    recipe: Recipe, shapes: Shapes, card: Card, twins: Sequence[MemoryTwin] = (), *, layers: int | None = None
) -> Trace:
    """Trace a run with batches of these shapes on a card; `twins` stand for custom kernels.

    With `layers`, the model has only so many, the first of its own: a search extrapolates from there.
    Raises `ModelError` where the model cannot be built without its weights, or its step not be traced.
    """
    gc.freeze()  # what is imported stays: to look through it for garbage would take half the time of a small model
    try:
        with as_processes(card.count):
            return _traced(recipe, shapes, card, twins, layers)
    finally:
        gc.unfreeze()


def _traced(recipe: Recipe, shapes: Shapes, card: Card, twins: Sequence[MemoryTwin], layers: int | None) -> Trace:
    strategies, plan = planned(recipe, gpu=True, processes=card.count, capability=card.capability)
    plan = replace(plan, pin_memory=False)  # it is memory of the host
    base = built(recipe)
    must_not_say_so(recipe, base.config.to_dict())
    if layers is not None:
        shorten(base, layers)
    before = [table.detach() for table in tables(base)] if recipe.model.tokens.any else []
    base = with_tokens(recipe, base)
    larger = outgrown(before, base) if before else []
    before.clear()
    config, base = base.config, loaded(strategies, base)
    weights = list(tensors_of(base)) if recipe.objective.record.convert is not None else []
    model = begun(recipe, converted(recipe, base), None)
    del base
    notices: list[str] = []
    modules = ModuleTracker(model)
    deterministic = recipe.general.deterministic
    flash = flash_attention.possible(
        () if flash_attention.drops(config) else plan.flash_attention,
        card.capability,
        deterministic=deterministic,
        here=is_here(card) or flash_attention.drops(config),
    )
    tracer = Tracer(
        modules,
        scratch=scratch_table(card.capability, deterministic=deterministic, flash=flash),
        cublas_workspace=cublas_workspace(card.capability, deterministic=deterministic),
    )
    packed, whole = any(batch.positions is not None for batch in shapes.training), partial(called, strategies)

    def isolate(model: nn.Module) -> None:
        if packed:
            isolation = assume_isolated(model, card.capability, whole)
            notices.append(f"packed documents are kept apart by {isolation}")
            if len(flash) > 1 and not isolation.reason:
                notices.append(ANY_FLASH)

    with contextlib.ExitStack() as stack:
        stack.enter_context(_quiet())
        stack.enter_context(as_on_card(card.capability, deterministic=deterministic))
        known = stack.enter_context(as_with_values())
        stack.enter_context(modules.watch())
        stack.enter_context(in_words(model, modules, tracer))
        stack.enter_context(in_place_of_kernels(twins, tracer))
        if card.count > 1:
            stack.enter_context(as_sharded(tracer))
        known.packed = packed
        read = Read(tensors=weights, outgrown=larger)
        step, computed = follow(recipe, strategies, plan, model, shapes, tracer, known, isolate=isolate, read=read)
    if tracer.by_most:
        notices.append(THE_MOST)
    trained = [batch for number, batches in computed.items() for batch in shapes.training[:number][:batches]]
    return Trace(
        log=replace(tracer.log, events=list(tracer.log.events)),  # what is let go of from here on is no part of the run
        plan=plan,
        trainable=sum(p.numel() for p in step.trainables.parameters),
        parameters=sum(p.numel() for p in model.parameters()),
        flops_per_token=tracer.flops / sum(batch.input_ids.numel() for batch in trained),
        work=tracer.work,
        micro_batches=computed[STEPS],
        config=config,
        notices=(*told(recipe, strategies, model), *notices, *step.said(), *step.without_effect()),
    )


def follow(
    recipe: Recipe,
    strategies: Strategies,
    plan: Plan,
    model: PreTrainedModel,
    shapes: Shapes,
    tracer: Tracer,
    known: Known,
    device: torch.device = DEVICE,
    isolate: Callable[[nn.Module], None] = lambda model: None,
    read: Read | None = None,
) -> tuple[Step, Counter[int]]:
    """Trace a model from its weights to its evaluation; `isolate` keeps packed documents apart. `read` is what the base
    is read as, and is let go of here.

    Gives the step, and how many micro-batches were computed in the first, the second and so on. Tests do it with values
    too, on another device.
    """
    tracer.enter("load", 0)
    tracer.last_step = STEPS
    with tracer:
        if plan.sharded:
            if read is not None:
                read.forget()  # a layer's whole weights are given back once it is spread
            model = load_in_shards(model, strategies, tracer)
        else:
            load(model, tracer, 0.0 if plan.stored is None else plan.stored.reading, read or Read())
            model = distributed(strategies, changed(strategies, model))
        isolate(model)
        split_rows(strategies, plan, model, device)
        trainables = _trainables(recipe, strategies, model, tracer)
        optimizer = make_optimizer(recipe, strategies, trainables, fused=True)
        recorder = TracedRecorder(tracer, plan, device, length=longest_row(recipe, model))
        step = make_step(recipe, plan, strategies, model, trainables, optimizer, device, recorder)
        computed = _steps(step, shapes, tracer, known, plan)
        if shapes.evaluation is not None or shapes.prompt:
            tracer.enter("evaluation")
            with step.averaged():
                _evaluate(step, called(strategies, generate), recipe.evaluation, shapes, tracer, known)
    return step, computed


def _trainables(recipe: Recipe, strategies: Strategies, model: PreTrainedModel, tracer: Tracer) -> Trainables:
    """What trains, with its masters."""
    trainables = trainables_of(recipe, strategies, model)
    copied = [m for p, m in zip(trainables.parameters, trainables.masters, strict=True) if p is not m]
    tracer.retag(copied, "master weights")
    return trainables


def _steps(step: Step, shapes: Shapes, tracer: Tracer, known: Known, plan: Plan) -> Counter[int]:
    computed: Counter[int] = Counter()
    known.packed = any(batch.positions is not None for batch in shapes.training)
    for number in range(1, STEPS + 1):
        tracer.enter("forward", number)
        step.make(
            shapes.training[:number],
            plan.replicas * sum(batch.targets for batch in shapes.training),
            reduce=partial(step.trainables.reduce, cast("Accelerator", Processes(num_processes=plan.processes))),
            enter=partial(_enter, step, tracer, number, computed),
        )
        _tag_state(step, tracer)
    return computed


def _enter(step: Step, tracer: Tracer, number: int, computed: Counter[int], phase: Phase) -> None:
    """Note the phase, and what the phase before it has left behind."""
    computed[number] += phase == "forward"
    if phase == "gradients":
        tracer.retag((p.grad for p in step.trainables.parameters), "gradients")
    elif phase in ("forward", "optimizer"):
        tracer.retag((m.grad for m in step.trainables.masters), "gradients")
    tracer.enter(phase, number)


def _tag_state(step: Step, tracer: Tracer) -> None:
    state: Any = step.optimizer.state
    tensors = (value for values in state.values() for value in values.values() if isinstance(value, Tensor))
    tracer.retag(tensors, "optimizer state")


def _evaluate(
    step: Step,
    write: Callable[..., Any],
    settings: Evaluation,
    shapes: Shapes,
    tracer: Tracer,
    known: Known,
) -> None:
    tracer.enter("evaluation")
    step.model.eval()
    batch = shapes.evaluation
    if batch is not None:
        known.packed = batch.positions is not None
        with torch.no_grad():
            step.whole(step.loss)(step.model, step.part(batch).to(step.device))
    if shapes.prompt:
        known.packed, known.padded = False, settings.micro_batch > 1
        tracer.enter("evaluation")
        write(step.model, settings.micro_batch, shapes.prompt, settings.max_new_tokens, tracer, step.device)
    step.model.train()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings: a run gives them too, and there they are about something that happens."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
