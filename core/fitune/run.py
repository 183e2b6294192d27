"""The training loop, from top to bottom.

A run composes its parts, then makes optimizer steps. The gradient of a step is exact: the sum over all target tokens
of the step's micro-batches, in every process, divided by their number. What happens is told to plugins as events.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from fitune.compose import Forecaster, Parts, compose
from fitune.dataflow import Batch
from fitune.errors import RunError
from fitune.events import EvalReport, MemoryReport, Run, StepReport
from fitune.order import share, windows
from fitune.prepare import UNWATCHED, Watch, batches
from fitune.processes import is_main_process
from fitune.provenance import write_environment, write_recipe
from fitune.recipe import Recipe
from fitune.registry import Registry
from fitune.step import always


def run(
    recipe: Recipe,
    registry: Registry,
    directory: Path,
    watch: Watch = UNWATCHED,
    forecaster: Forecaster | None = None,
) -> Run:
    """Train as the recipe says and save what was trained in `directory`; `watch` is told of data being prepared.

    A forecaster says what the run will take of the card, before its first step, and may refuse it. Raises the errors
    of `fitune.errors`.
    """
    parts: Parts | None = None
    error: BaseException | None = None
    try:
        parts = compose(recipe, directory, watch, forecaster)
        events = _Events(registry, parts)
        if parts.accelerator.is_main_process:
            write_recipe(recipe, directory)
            commit = getattr(parts.run.model.config, "_commit_hash", None)
            write_environment(recipe, registry, directory, model_commit=commit)
        events.started()
        for report in train(parts):
            if isinstance(report, StepReport):
                events.step_done(report)
            else:
                events.evaluated(report)
        if parts.accelerator.is_main_process:
            events.saved(save(parts))
        parts.accelerator.wait_for_everyone()
        parts.accelerator.end_training()
    except torch.OutOfMemoryError as raised:
        _keep(raised, directory)
        error = RunError(_out_of_memory(raised, parts))
        raise error from raised
    except BaseException as raised:
        error = raised
        raise
    finally:
        if is_main_process():  # there is no accelerator to ask where composing failed
            failures = registry.call_every(
                "ft_run_finished", recipe=recipe, run=parts.run if parts else None, error=error
            )
            for failure in failures if error is not None else failures[1:]:
                print(f"error: {failure.message}", file=sys.stderr)  # what ended the run comes after it
            if failures and error is None:
                raise failures[0]
    return parts.run


def train(parts: Parts) -> Iterator[StepReport | EvalReport]:
    """Make every step of the run; gives a report of each step and each evaluation."""
    recipe, accelerator, evaluator = parts.run.recipe, parts.accelerator, parts.evaluator
    if evaluator and recipe.evaluation.before:
        yield evaluator.evaluate(0)
    plan_of_rows = windows(len(parts.examples), parts.window, recipe.general.seed)
    for number in range(1, parts.run.steps + 1):
        start = time.perf_counter()
        epoch, window = next(plan_of_rows)
        rows = [parts.examples[row] for row in window]
        targets = sum(example.targets for example in rows)

        picks = share(window, recipe.train.micro_batch, accelerator.process_index, accelerator.num_processes)
        learning_rate = parts.step.optimizer.param_groups[0]["lr"]
        loss_scale = parts.step.scaling.scale if parts.step.scaling else None
        loss_sum, norm, skipped = _make_step(parts, batches(parts.examples, picks, parts.make_batches), targets)
        mean = loss_sum.item() / targets  # waits for the device, so the time below is the step's own
        _must_be_finite(number, mean, norm.item(), skipped=skipped)
        yield StepReport(
            step=number,
            epoch=epoch,
            loss=mean,
            learning_rate=float(learning_rate),
            grad_norm=norm.item(),
            tokens=sum(len(example.input_ids) for example in rows),
            targets=targets,
            seconds=time.perf_counter() - start,
            memory=measure_memory(accelerator.device),
            loss_scale=loss_scale,
            skipped=skipped,
        )
        every = recipe.evaluation.every
        if evaluator and (number == parts.run.steps or (every and number % every == 0)):
            yield evaluator.evaluate(number)


def _make_step(parts: Parts, micro_batches: Iterable[Batch], targets: int) -> tuple[Tensor, Tensor, bool]:
    """Make a step: the sum of all processes' losses, the gradient's norm, and whether its overflow had it skipped.

    The schedule goes on only with steps that are made, as in accelerate.
    """
    scaling = parts.step.scaling
    loss_sum, norm = parts.step.make(
        micro_batches,
        targets,
        reduce=partial(parts.step.trainables.reduce, parts.accelerator),
        accept=scaling.accept if scaling else always,
    )
    skipped = scaling is not None and scaling.skipped > 0
    if not skipped:
        parts.scheduler.step()
    return cast(Tensor, parts.accelerator.reduce(loss_sum, reduction="sum")), norm, skipped


def _must_be_finite(step: int, loss: float, norm: float, *, skipped: bool) -> None:
    """Stop a run whose weights are no numbers any more, which every later step would only hide."""
    if math.isfinite(loss) and (math.isfinite(norm) or skipped):
        return
    fix = "Try a lower [train] learning_rate, or warmup_steps"
    if skipped:  # whatever the scale is, the forward pass is the same
        fix = 'In float16 the model itself may overflow: set its dtype to "bfloat16" or "float32"'
    raise RunError(
        f"step {step}: the loss is {loss:g} and its gradient's norm {norm:g}, so training cannot go on. Nothing is "
        f"saved. {fix}"
    )


def save(parts: Parts) -> Path:
    """Write what was trained, with its tokenizer: whole, or not at all. Raises `RunError`."""
    record = parts.run.recipe.adapter.record
    final = parts.run.directory / record.directory
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        record.save(parts.run.model, partial)
        parts.run.tokenizer.save_pretrained(str(partial))
        if final.exists():
            shutil.rmtree(final)
        partial.replace(final)
    except Exception as error:  # a full disk is an OSError here, an error of safetensors' own there
        cause = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
        raise RunError(
            f"{final} could not be written: {cause or type(error).__name__}. What was trained is lost"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def measure_context(device: torch.device | str) -> int:
    """Bytes of the GPU that are used outside of this process' caching allocator: its context, and other processes."""
    free, total = torch.cuda.mem_get_info(device)
    return int(total - free - torch.cuda.memory_reserved(device))


def measure_memory(device: torch.device | str) -> MemoryReport:
    """The most memory that this process has used so far."""
    device = torch.device(device)
    if device.type == "cuda":
        return MemoryReport(
            kind="gpu", peak=torch.cuda.max_memory_allocated(device), reserved=torch.cuda.max_memory_reserved(device)
        )
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return MemoryReport(kind="host", peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def _keep(error: torch.OutOfMemoryError, directory: Path) -> None:
    """Leave torch's message in the run's directory, for `ft explain-oom`; where that cannot be, it is told anyway."""
    with contextlib.suppress(OSError):
        text = "".join(traceback.format_exception(error))
        (directory / "error.txt").write_text(text, encoding="utf-8")


def _out_of_memory(error: torch.OutOfMemoryError, parts: Parts | None) -> str:
    """What was asked for, and what tells what a recipe can do about it."""
    said = next((line for line in str(error).splitlines() if "Tried to allocate" in line), str(error))
    where = (
        f"in training: {said.strip()} What would make it fit: ft explain-oom {parts.run.directory}"
        if parts
        else (f"while loading: {said.strip()} What would make it fit: ft plan RECIPE --levers")
    )
    return f"out of GPU memory {where}"


class _Events:
    """Tells plugins what happens, in the main process."""

    def __init__(self, registry: Registry, parts: Parts) -> None:
        self.registry = registry
        self.parts = parts

    def started(self) -> None:
        self._tell("ft_run_started")

    def step_done(self, step: StepReport) -> None:
        self._tell("ft_step_done", step=step)

    def evaluated(self, report: EvalReport) -> None:
        self._tell("ft_evaluated", report=report)

    def saved(self, directory: Path) -> None:
        self._tell("ft_saved", directory=directory)

    def _tell(self, hook: str, **arguments: object) -> None:
        if self.parts.accelerator.is_main_process:
            self.registry.call(hook, run=self.parts.run, **arguments)
