"""Composes a run: loader, adapter, memory strategies and data of a recipe become the parts that the loop works with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list, set_seed
from transformers import get_scheduler

from fitune.attention import isolate_documents
from fitune.contract import blame
from fitune.dataflow import DataContext, Example
from fitune.devices import make_accelerator, set_allocator, set_deterministic
from fitune.errors import ModelError, PluginError
from fitune.evaluate import Evaluator
from fitune.events import MemoryForecast, Run
from fitune.loss import plain_loss
from fitune.loss_scaling import loss_scaling
from fitune.materials import Materials, gather
from fitune.prepare import UNWATCHED, Prepared, Watch, batch_maker
from fitune.recipe import Recipe, Use
from fitune.records import MemoryStrategy, OptimizerSettings, Plan, Strategy
from fitune.registry import KINDS
from fitune.step import Step
from fitune.stopping import StopRequest
from fitune.trainables import Trainables, decay_groups

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler
    from transformers import PreTrainedModel

    from fitune.dataflow import Stage


T = TypeVar("T")


class Forecaster(Protocol):
    """Forecasts the memory of a run while its weights are read."""

    def start(
        self, recipe: Recipe, context: DataContext, accumulation: int, data: Prepared, held_out: Prepared | None
    ) -> None:
        """Begin, once the rows are known."""

    def result(self) -> MemoryForecast:
        """Wait for the forecast. Raises `RunError` if the run does not fit."""


Strategies: TypeAlias = "tuple[tuple[Use[MemoryStrategy[Any]], Strategy], ...]"
"""The recipe's memory strategies at work, in its order, each with the table that it comes from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """All that the loop works with."""

    run: Run
    accelerator: Accelerator
    examples: Sequence[Example]
    make_batches: Stage
    step: Step
    scheduler: LRScheduler
    evaluator: Evaluator | None
    """None without held-out data."""
    materials: Materials

    @property
    def window(self) -> int:
        """Rows of one optimizer step, over all micro-batches and processes."""
        return self.run.recipe.train.micro_batch * self.run.plan.accumulation * self.run.processes


def compose(
    recipe: Recipe,
    directory: Path,
    watch: Watch = UNWATCHED,
    forecaster: Forecaster | None = None,
    *,
    materials: Materials | None = None,
    fitted: tuple[str, ...] = (),
    resumed: int | None = None,
    evaluated: int = -1,
    stop: StopRequest | None = None,
) -> Parts:
    """Load, adapt and prepare everything, data under this watch if they are not there; the forecaster works while the
    weights are read. `fitted` says what `[memory] fit` chose, `resumed` how many steps were made before, and
    `evaluated` after how many the last evaluation; `stop` is what can ask the run to end.

    Raises the errors of `fitune.errors`.
    """
    strategies, plan = planned(recipe, gpu=torch.cuda.is_available())
    set_allocator(plan)
    set_deterministic(recipe.general.deterministic)
    accelerator = make_accelerator()
    directory = broadcast_object_list([directory])[0]  # it may be named by the time

    materials = materials or gather(recipe, watch)
    data, held_out = materials.data, materials.held_out
    if forecaster is not None:
        forecaster.start(recipe, materials.context, plan.accumulation, data, held_out)

    model = _model(recipe, strategies, plan, accelerator)
    plan = _with_documents_apart(plan, recipe, model, data)
    materials.must_be_known_to(model)
    trainables = Trainables(model, masters=recipe.train.master_weights)
    set_seed(recipe.general.seed, device_specific=True)  # each process drops other units

    optimizer = make_optimizer(recipe, strategies, trainables, fused=accelerator.device.type == "cuda")
    steps = _steps(recipe, plan, accelerator, len(data.rows))
    scheduler = get_scheduler(
        recipe.train.schedule,
        optimizer,
        num_warmup_steps=recipe.train.warmup_steps,
        num_training_steps=steps,
    )
    run = Run(
        recipe=recipe,
        directory=directory,
        plan=plan,
        model=model,
        tokenizer=materials.tokenizer,
        device=str(accelerator.device),
        processes=accelerator.num_processes,
        steps=steps,
        rows=len(data.rows),
        counts=materials.counts,
        trainable=sum(p.numel() for p in trainables.parameters),
        parameters=sum(p.numel() for p in model.parameters()),
        forecast=None if forecaster is None else forecaster.result(),
        fitted=fitted,
        resumed=resumed,
        evaluated=evaluated,
        stop=stop or StopRequest(),
    )
    make_batches = batch_maker(recipe.stages, materials.context)
    return Parts(
        run=run,
        accelerator=accelerator,
        examples=data.rows,
        make_batches=make_batches,
        step=make_step(recipe, plan, strategies, model, trainables, optimizer, accelerator.device),
        scheduler=scheduler,
        evaluator=None if held_out is None else _evaluator(run, held_out, make_batches, accelerator),
        materials=materials,
    )


def planned(recipe: Recipe, *, gpu: bool) -> tuple[Strategies, Plan]:
    """The recipe's memory strategies, and what they decide before a weight is read."""
    strategies = tuple((use, call_plugin(use, use.record.make, use.options)) for use in recipe.strategies)
    plan = Plan(gpu=gpu)
    for use, strategy in strategies:
        plan = call_plugin(use, strategy.plan, plan)
    return strategies, plan


def adapted(recipe: Recipe, strategies: Strategies, model: PreTrainedModel) -> PreTrainedModel:
    """The base model, changed by the strategies, with its adapter."""
    for use, strategy in strategies:
        model = call_plugin(use, strategy.loaded, model)
    return call_plugin(recipe.adapter, recipe.adapter.record.attach, recipe.adapter.options, model)


def prepared(strategies: Strategies, model: PreTrainedModel) -> PreTrainedModel:
    """The model, with its adapter and on its device, changed by the strategies, in training mode."""
    for use, strategy in strategies:
        model = call_plugin(use, strategy.prepare, model)
    model.train()
    return model


def make_step(
    recipe: Recipe,
    plan: Plan,
    strategies: Strategies,
    model: PreTrainedModel,
    trainables: Trainables,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
) -> Step:
    """The optimizer step of a run. Raises `RunError` if the model's type cannot be trained."""
    return Step(
        model=model,
        loss=plan.loss or plain_loss,
        trainables=trainables,
        optimizer=optimizer,
        strategies=[strategy for _, strategy in strategies],
        max_grad_norm=recipe.train.max_grad_norm,
        device=device,
        pin_memory=plan.pin_memory,
        scaling=loss_scaling(model, trainables.masters),
    )


def _evaluator(run: Run, held_out: Prepared, make_batches: Stage, accelerator: Accelerator) -> Evaluator:
    return Evaluator(
        settings=run.recipe.evaluation,
        examples=held_out.rows,
        make_batches=make_batches,
        loss=run.plan.loss or plain_loss,
        model=run.model,
        tokenizer=run.tokenizer,
        accelerator=accelerator,
    )


def _with_documents_apart(plan: Plan, recipe: Recipe, model: PreTrainedModel, data: Prepared) -> Plan:
    """Where a stage packs, make the model keep documents apart, and say how. Raises `ModelError` if it cannot."""
    if not any(use.record.packs for use in recipe.stages):
        return plan
    apart = f"packed documents are kept apart by {isolate_documents(model)}"
    efficiency = f"packing efficiency {data.tokens / (len(data.rows) * recipe.train.length):.4f}"
    return replace(plan, notices=(*plan.notices, apart, efficiency))


def call_plugin(use: Use[Any], function: Callable[..., T], *arguments: object) -> T:
    """Call what a plugin provides; what it raises, but for memory, gets the plugin's name."""
    with blame(f'{KINDS[type(use.record)]} "{use.record.name}"', but=torch.OutOfMemoryError):
        return function(*arguments)


def _model(recipe: Recipe, strategies: Strategies, plan: Plan, accelerator: Accelerator) -> PreTrainedModel:
    """The model with its adapter, changed by the strategies; what trains is equal in every process."""
    set_seed(recipe.general.seed)  # before the adapter draws its first weights
    model = prepared(strategies, adapted(recipe, strategies, base_model(recipe, plan, accelerator.device)))
    if accelerator.num_processes > 1:
        broadcast([p.data for p in model.parameters() if p.requires_grad], from_process=0)
    return model


def base_model(recipe: Recipe, plan: Plan, device: torch.device) -> PreTrainedModel:
    """The base model, quantised as the plan says. Raises `ModelError` if its loader cannot quantise."""
    record, options = recipe.model.record, recipe.model.options
    if plan.quantization is None:
        return call_plugin(recipe.model, record.load_model, options, device)
    if record.load_quantized is None:
        raise ModelError(
            f'the model loader "{record.name}" cannot quantise, which a [[memory.strategy]] asks for. Remove that '
            'strategy, or load with use = "hf"'
        )
    return call_plugin(recipe.model, record.load_quantized, options, device, plan.quantization)


def make_optimizer(
    recipe: Recipe, strategies: Strategies, trainables: Trainables, *, fused: bool
) -> torch.optim.Optimizer:
    """The one that a strategy makes, or AdamW. Raises `PluginError` if two strategies make one."""
    train = recipe.train
    settings = OptimizerSettings(
        learning_rate=train.learning_rate,
        weight_decay=train.weight_decay,
        betas=(train.beta1, train.beta2),
        eps=train.epsilon,
        fused=fused,
    )
    made = [
        (use.record.name, call_plugin(use, strategy.make_optimizer, trainables.masters, settings))
        for use, strategy in strategies
    ]
    found = [(name, optimizer) for name, optimizer in made if optimizer is not None]
    if len(found) > 1:
        names = " and ".join(f'"{name}"' for name, _ in found)
        raise PluginError(f"the memory strategies {names} both make an optimizer. Keep one of them")
    if found:
        return found[0][1]
    return torch.optim.AdamW(
        decay_groups(trainables.masters),
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=settings.fused,
    )


def _steps(recipe: Recipe, plan: Plan, accelerator: Accelerator, rows: int) -> int:
    """Optimizer steps of the run."""
    train = recipe.train
    window = train.micro_batch * plan.accumulation * int(accelerator.num_processes)
    if train.epochs is None and train.steps is not None:
        return train.steps
    of_epochs = max(1, round((train.epochs or 1.0) * -(-rows // window)))
    return of_epochs if train.steps is None else min(train.steps, of_epochs)
