"""Composes a run: loader, adapter, memory strategies and data of a recipe become the parts that the loop works with."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast, set_seed
from transformers import get_scheduler

from fitune.data import Prepared, batch_maker, prepare
from fitune.errors import PluginError, RunError
from fitune.evaluate import Evaluator
from fitune.events import Run
from fitune.loss import plain_loss
from fitune.recipe import Recipe
from fitune.records import DataContext, Example, OptimizerSettings, Plan, Strategy
from fitune.trainables import Trainables

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from fitune.records import Loss, Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """All that the loop works with."""

    run: Run
    accelerator: Accelerator
    examples: Sequence[Example]
    make_batches: Stage
    loss: Loss
    trainables: Trainables
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    strategies: tuple[tuple[str, Strategy], ...]
    """In the recipe's order, with their names."""
    evaluator: Evaluator | None
    """None without held-out data."""

    @property
    def window(self) -> int:
        """Rows of one optimizer step, over all micro-batches and processes."""
        return self.run.recipe.train.micro_batch * self.run.plan.accumulation * self.run.processes

    def around_step(self) -> contextlib.ExitStack:
        """The strategies' contexts, the first outermost."""
        stack = contextlib.ExitStack()
        for _, strategy in self.strategies:
            stack.enter_context(strategy.around_step())
        return stack


def compose(recipe: Recipe, directory: Path) -> Parts:
    """Load, adapt and prepare everything. Raises the errors of `fitune.errors`."""
    strategies = tuple((use.record.name, use.record.make(use.options)) for use in recipe.strategies)
    plan = Plan()
    for _, strategy in strategies:
        plan = strategy.plan(plan)
    _set_allocator(plan)
    accelerator = Accelerator(mixed_precision="no", log_with=recipe.log.tracker, project_dir=str(directory))
    _check_processes(accelerator)

    tokenizer = recipe.model.record.load_tokenizer(recipe.model.options)
    context = DataContext(tokenizer=tokenizer, length=recipe.train.length, seed=recipe.general.seed)
    data = prepare(recipe.sources, recipe.stages, context)
    held_out = prepare(recipe.eval_sources, recipe.stages, context) if recipe.eval_sources else None

    set_seed(recipe.general.seed)  # before the adapter draws its first weights
    model = recipe.model.record.load_model(recipe.model.options, accelerator.device)
    model = recipe.adapter.record.attach(recipe.adapter.options, model)
    for _, strategy in strategies:
        model = strategy.prepare(model)
    model.train()
    trainables = Trainables(model, masters=recipe.train.master_weights)
    if accelerator.num_processes > 1:
        broadcast([p.data for p in trainables.parameters], from_process=0)
    set_seed(recipe.general.seed, device_specific=True)  # each process drops other units

    optimizer = _optimizer(recipe, strategies, trainables, accelerator.device)
    steps = _steps(recipe, plan, accelerator, len(data.examples))
    scheduler = get_scheduler(
        recipe.train.schedule,
        optimizer,
        num_warmup_steps=recipe.train.warmup_steps,
        num_training_steps=steps,
    )
    loss = plan.loss or plain_loss
    make_batches = batch_maker(recipe.stages, context)
    evaluator = (
        None
        if held_out is None
        else Evaluator(
            settings=recipe.evaluation,
            examples=held_out.examples,
            make_batches=make_batches,
            loss=loss,
            model=model,
            tokenizer=tokenizer,
            accelerator=accelerator,
        )
    )
    run = Run(
        recipe=recipe,
        directory=directory,
        plan=plan,
        model=model,
        tokenizer=tokenizer,
        device=str(accelerator.device),
        processes=accelerator.num_processes,
        steps=steps,
        rows=len(data.examples),
        counts=_counts(data, held_out),
        trainable=sum(p.numel() for p in trainables.parameters),
        parameters=sum(p.numel() for p in model.parameters()),
    )
    return Parts(
        run=run,
        accelerator=accelerator,
        examples=data.examples,
        make_batches=make_batches,
        loss=loss,
        trainables=trainables,
        optimizer=optimizer,
        scheduler=scheduler,
        strategies=strategies,
        evaluator=evaluator,
    )


def _set_allocator(plan: Plan) -> None:
    """Give the CUDA caching allocator the plan's settings, over those of the environment."""
    if not plan.allocator:
        return
    name = "PYTORCH_ALLOC_CONF"
    given = os.environ.get(name) or os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or ""
    settings = dict(pair.split(":", 1) for pair in given.split(",") if ":" in pair)
    settings.update(plan.allocator)
    os.environ[name] = ",".join(f"{key}:{value}" for key, value in settings.items())
    torch.cuda.memory._set_allocator_settings(os.environ[name])  # the environment may have been read already


def _check_processes(accelerator: Accelerator) -> None:
    """The loop sums gradients itself; sharded and offloaded engines do it in a way of their own."""
    known = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    if accelerator.distributed_type not in known:
        raise RunError(
            f"accelerate is set up for {accelerator.distributed_type.value}, which fitune does not run under yet. "
            "Launch with --multi_gpu, or without accelerate"
        )


def _optimizer(
    recipe: Recipe, strategies: Sequence[tuple[str, Strategy]], trainables: Trainables, device: torch.device
) -> torch.optim.Optimizer:
    """The one that a strategy makes, or AdamW. Raises `PluginError` if two strategies make one."""
    train = recipe.train
    settings = OptimizerSettings(
        learning_rate=train.learning_rate,
        weight_decay=train.weight_decay,
        betas=(train.beta1, train.beta2),
        eps=train.epsilon,
        fused=device.type == "cuda",
    )
    made = [(name, strategy.make_optimizer(trainables.masters, settings)) for name, strategy in strategies]
    found = [(name, optimizer) for name, optimizer in made if optimizer is not None]
    if len(found) > 1:
        names = " and ".join(f'"{name}"' for name, _ in found)
        raise PluginError(f"the memory strategies {names} both make an optimizer. Keep one of them")
    if found:
        return found[0][1]
    matrices = [p for p in trainables.masters if p.ndim >= 2]
    vectors = [p for p in trainables.masters if p.ndim < 2]  # norms and biases are not decayed, as is the custom
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
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


def _counts(data: Prepared, held_out: Prepared | None) -> tuple[tuple[str, int], ...]:
    of_eval = [(f"held out: {what}", number) for what, number in (held_out.counts if held_out else ())]
    return (*data.counts, *of_eval)
