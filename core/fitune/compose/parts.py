"""Composes a run: loader, adapter, memory strategies and data of a recipe become the parts that the loop works with."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed

from fitune.compose.context_parallel import part_of, split_rows
from fitune.compose.devices import make_accelerator, must_be_one_run, set_allocator, set_deterministic
from fitune.compose.dialogue import dialogue_of, end_as_trained
from fitune.compose.evaluate import Evaluator
from fitune.compose.loss_scaling import loss_scaling
from fitune.compose.masters import trainables_of
from fitune.compose.model import (
    Strategies,
    called,
    know_padding,
    make_optimizer,
    must_not_see_later,
    planned,
    told,
    with_documents_apart,
)
from fitune.compose.objective import ObjectiveLoss, objective_of
from fitune.compose.optimizer import Trainables
from fitune.compose.positions import longest_row, position_notices
from fitune.compose.processes import process_count
from fitune.compose.reading import make_model, told_of_reading
from fitune.compose.recorder import recorder_for
from fitune.compose.reference import scored_rows
from fitune.compose.shards import put_together
from fitune.compose.step import Step
from fitune.compose.stopping import ends_of
from fitune.data.prepare import UNWATCHED, Prepared, Watch, batch_maker
from fitune.data.run_data import RunData, gather
from fitune.plugin.dataflow import DataContext, Example
from fitune.plugin.events import MemoryForecast, Run, StopRequest
from fitune.plugin.model import unwrapped
from fitune.plugin.recipe import Recipe
from fitune.plugin.strategy import Plan, Recorder
from fitune.plugin.timings import Timings

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LambdaLR
    from transformers import PreTrainedModel

    from fitune.plugin.dataflow import Stage
    from fitune.plugin.records import Dialogue


class Forecaster(Protocol):
    """Forecasts the memory of a run while its weights are read."""

    def start(
        self, recipe: Recipe, context: DataContext, accumulation: int, data: Prepared, held_out: Prepared | None
    ) -> None:
        """Begin, once the rows are known."""

    def result(self) -> MemoryForecast:
        """Wait for the forecast. Raises `RunError` if the run does not fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """All that the loop works with."""

    run: Run
    accelerator: Accelerator
    examples: Sequence[Example]
    make_batches: Stage
    step: Step
    scheduler: LambdaLR
    settings: tuple[Mapping[str, Any], ...]
    """Of the optimizer's parameter groups, as the recipe has them: all but the parameters, before any step."""
    evaluator: Evaluator | None
    """None without held-out data."""
    run_data: RunData
    dialogue: Dialogue | None
    """How conversations were written; None where texts are trained on."""

    def units(self, examples: Sequence[Example]) -> int:
        """What the sum of the loss over these rows is divided by."""
        return cast(ObjectiveLoss, self.step.loss).units(examples)

    @property
    def window(self) -> int:
        """Rows of one optimizer step, over all micro-batches and processes."""
        return self.run.recipe.train.micro_batch * self.run.plan.accumulation * self.run.plan.replicas


def compose(
    recipe: Recipe,
    directory: Path,
    watch: Watch = UNWATCHED,
    forecaster: Forecaster | None = None,
    *,
    run_data: RunData | None = None,
    fitted: tuple[str, ...] = (),
    resumed: int | None = None,
    evaluated: int = -1,
    start: Path | None = None,
    stop: StopRequest | None = None,
    timings: Timings | None = None,
) -> Parts:
    """Load, adapt and prepare everything, data under this watch if they are not there; the forecaster works while the
    weights are read. `fitted` says what `[memory]` chose, `resumed` how many steps were made before, and
    `evaluated` after how many the last evaluation; `start` is where the weights are that the adapter goes on from;
    `stop` is what can ask the run to end; `timings` notes what takes how long.

    Raises the errors of `fitune.errors`.
    """
    strategies, plan = planned(recipe, gpu=torch.cuda.is_available(), processes=process_count())
    set_allocator(plan)
    set_deterministic(recipe.general.deterministic)
    accelerator = make_accelerator()
    must_be_one_run(recipe)
    directory = broadcast_object_list([directory])[0]  # it may be named by the time

    timings = timings or Timings()
    timings.done("device")
    run_data = run_data or gather(recipe, watch)
    timings.done("data")
    data, held_out = run_data.data, run_data.held_out
    if forecaster is not None:
        forecaster.start(recipe, run_data.context, plan.accumulation, data, held_out)

    model = make_model(recipe, strategies, plan, accelerator, timings, start, watch)
    if recipe.objective.record.convert is not None:
        know_padding(unwrapped(model), run_data.tokenizer)
    must_not_see_later(recipe, strategies, model)
    plan = with_documents_apart(plan, recipe, strategies, model, data)
    split_rows(strategies, plan, model, accelerator.device)
    run_data.must_be_known_to(model)
    make_batches = batch_maker(recipe.stages, run_data.context)
    scored = partial(scored_rows, recipe, plan, make_batches, accelerator.device, lambda: model, start, watch)
    examples, held_out_examples = scored(data), None if held_out is None else scored(held_out)
    behind = position_notices(recipe, run_data.context, model, data, held_out)
    plan = replace(plan, notices=(*plan.notices, *behind))
    dialogue = dialogue_of(recipe, run_data.context)
    end_as_trained(unwrapped(model), run_data.tokenizer, dialogue)  # before any of it is saved
    trainables = trainables_of(recipe, strategies, model)
    set_seed(recipe.general.seed, device_specific=True)  # each process drops other units

    optimizer = make_optimizer(recipe, strategies, trainables, fused=accelerator.device.type == "cuda")
    steps = steps_of(recipe, plan.accumulation, len(data.rows), plan.replicas)
    timings.done("adapter")
    scheduler = _scheduler(recipe, optimizer, steps)
    run = Run(
        recipe=recipe,
        directory=directory,
        plan=plan,
        model=model,
        tokenizer=run_data.tokenizer,
        device=str(accelerator.device),
        processes=accelerator.num_processes,
        steps=steps,
        rows=len(data.rows),
        counts=run_data.counts,
        trainable=sum(p.numel() for p in trainables.parameters),
        parameters=sum(p.numel() for p in model.parameters()),
        forecast=None if forecaster is None else forecaster.result(),
        fitted=fitted,
        told=(*told_of_reading(model), *told(recipe, strategies, model)),
        resumed=resumed,
        evaluated=evaluated,
        stop=stop or StopRequest(),
        timings=timings,
    )
    timings.done("forecast")
    return Parts(
        run=run,
        accelerator=accelerator,
        examples=examples,
        make_batches=make_batches,
        step=make_step(recipe, plan, strategies, model, trainables, optimizer, accelerator.device),
        scheduler=scheduler,
        settings=settings_of(optimizer),
        evaluator=_evaluator(run, held_out_examples, make_batches, accelerator, dialogue, strategies),
        run_data=run_data,
        dialogue=dialogue,
    )


@contextlib.contextmanager
def whole_for_writing(parts: Parts) -> Iterator[None]:
    """A context in which the model has what is to be saved, and the first process all of what trains; every process
    must enter it.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(parts.step.averaged())
        if parts.run.plan.sharded:
            said = getattr(unwrapped(parts.run.model).config, "dtype", None)
            kind = getattr(torch, str(said).removeprefix("torch."), None)  # transformers has it in words once saved
            stack.enter_context(put_together(parts.run.model, kind if isinstance(kind, torch.dtype) else None))
        yield


def _scheduler(recipe: Recipe, optimizer: torch.optim.Optimizer, steps: int) -> LambdaLR:
    """Of the learning rate. What it is imported from imports peft, which the adapter knows better how to."""
    from transformers import get_scheduler

    train, warmup = recipe.train, recipe.train.warmup(steps)
    found = get_scheduler(train.schedule, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    return cast("LambdaLR", found)  # as all schedules are that a recipe can name


def settings_of(optimizer: torch.optim.Optimizer) -> tuple[Mapping[str, Any], ...]:
    """The settings of an optimizer's parameter groups, a copy."""
    return tuple(
        copy.deepcopy({key: value for key, value in group.items() if key != "params"})
        for group in optimizer.param_groups
    )


def make_step(
    recipe: Recipe,
    plan: Plan,
    strategies: Strategies,
    model: PreTrainedModel,
    trainables: Trainables,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    recorder: Recorder | None = None,
) -> Step:
    """The optimizer step of a run, which records with what is given, or with what suits the device.

    Raises `RunError` if the model's type cannot be trained.
    """
    loss = objective_of(recipe, plan, device)
    return Step(
        model=model,
        loss=loss,
        whole=partial(called, strategies),
        part=part_of(strategies),
        tally=loss.tally,
        trainables=trainables,
        optimizer=optimizer,
        strategies=strategies,
        max_grad_norm=recipe.train.max_grad_norm,
        device=device,
        pin_memory=plan.pin_memory,
        scaling=loss_scaling(model, trainables.masters),
        recorder=recorder or recorder_for(model, device, plan, length=longest_row(recipe, model)),
    )


def _evaluator(
    run: Run,
    held_out: Sequence[Example] | None,
    make_batches: Stage,
    accelerator: Accelerator,
    dialogue: Dialogue | None,
    strategies: Strategies,
) -> Evaluator | None:
    if held_out is None:
        return None
    return Evaluator(
        settings=run.recipe.evaluation,
        examples=held_out,
        make_batches=make_batches,
        objective=objective_of(run.recipe, run.plan, accelerator.device),
        model=run.model,
        tokenizer=run.tokenizer,
        accelerator=accelerator,
        ends=ends_of(run.tokenizer, dialogue),
        length=run.recipe.train.length,
        whole=partial(called, strategies),
        part=part_of(strategies),
        context_parallel=run.plan.context_parallel,
        in_step=run.plan.sharded,
    )


def steps_of(recipe: Recipe, accumulation: int, rows: int, replicas: int) -> int:
    """Optimizer steps over so many rows."""
    train = recipe.train
    window = train.micro_batch * accumulation * replicas
    if train.epochs is None and train.steps is not None:
        return train.steps
    of_epochs = steps_of_epochs(train.epochs or 1.0, -(-rows // window))
    return of_epochs if train.steps is None else min(train.steps, of_epochs)


def steps_of_epochs(epochs: float, steps: int) -> int:
    """Steps that so many epochs of so many steps take: the nearest number, the higher of two, one at least.

    Epochs count as they are written: 0.35 of 10 steps are 3.5, although the nearest binary number is less.
    """
    return max(1, math.floor(Fraction(str(epochs)) * steps + Fraction(1, 2)))
