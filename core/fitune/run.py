"""The training loop, from top to bottom.

A run composes its parts, then makes optimizer steps. The gradient of a step is exact: the sum over all target tokens
of the step's micro-batches, in every process, divided by their number. What happens is told to plugins as events.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torch import Tensor

from fitune.attempts import Attempts
from fitune.compose import Forecaster, Parts
from fitune.dataflow import Batch
from fitune.errors import RunError
from fitune.events import EvalReport, Run, StepReport
from fitune.fitting import Refitter
from fitune.measure import measure_memory
from fitune.order import share, windows
from fitune.prepare import UNWATCHED, Watch, batches
from fitune.processes import is_main_process
from fitune.recipe import Evaluation, Recipe
from fitune.recovery import Position
from fitune.registry import Registry
from fitune.saving import save
from fitune.step import always
from fitune.telling import Teller

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def run(
    recipe: Recipe,
    registry: Registry,
    directory: Path,
    watch: Watch = UNWATCHED,
    forecaster: Forecaster | None = None,
    refit: Refitter | None = None,
) -> Run:
    """Train as the recipe says and save what was trained in `directory`; `watch` is told of data being prepared.

    A forecaster says what the run will take of the card, before its first step, and may refuse it; `refit` finds what
    to go on with where memory runs out all the same, in place of the search that `[memory] fit` makes. Raises the
    errors of `fitune.errors`.
    """
    attempts = Attempts(recipe, registry, directory, watch, forecaster, refit)
    error: BaseException | None = None
    try:
        attempts.make(partial(_work, Teller(registry)))
    except BaseException as raised:
        error = raised
        raise
    finally:
        if is_main_process():  # there is no accelerator to ask where composing failed
            made = attempts.parts.run if attempts.parts else None
            failures = registry.call_every("ft_run_finished", recipe=recipe, run=made, error=error)
            for failure in failures if error is not None else failures[1:]:
                print(f"error: {failure.message}", file=sys.stderr)  # what ended the run comes after it
            if failures and error is None:
                raise failures[0]
    assert attempts.parts is not None
    return attempts.parts.run


def _work(tell: Teller, parts: Parts, at: Position) -> None:
    """Train from there to the end, and save."""
    for report in train(parts, at):
        if isinstance(report, StepReport):
            tell.step_done(parts.run, report)
        else:
            tell.evaluated(parts.run, report)
    if parts.accelerator.is_main_process:
        tell.saved(parts.run, save(parts))
    parts.accelerator.wait_for_everyone()
    parts.accelerator.end_training()


def train(parts: Parts, at: Position | None = None) -> Iterator[StepReport | EvalReport]:
    """Make every step of the run that is left at a position; gives a report of each step and each evaluation."""
    at = at or Position()
    rows_of_steps = windows(len(parts.examples), parts.window, parts.run.recipe.general.seed, start=at.step)
    while True:
        if parts.evaluator and _is_due(parts.run.recipe.evaluation, at, parts.run.steps):
            at.begin(parts, "evaluation")
            evaluated = parts.evaluator.evaluate(at.step)
            at.end_evaluation()
            yield evaluated
        if at.step == parts.run.steps:
            return
        at.begin(parts, "step")
        report = _step(parts, at, *next(rows_of_steps))
        at.end_step()
        yield report


def _is_due(settings: Evaluation, at: Position, steps: int) -> bool:
    """Whether an evaluation is to be made before the next step."""
    if at.evaluated == at.step:
        return False
    if at.step == 0:
        return settings.before
    return at.step == steps or (settings.every is not None and at.step % settings.every == 0)


def _step(parts: Parts, at: Position, epoch: float, window: NDArray[np.int64]) -> StepReport:
    """Make the next step, over the rows of this window."""
    start = time.perf_counter()
    accelerator, number = parts.accelerator, at.step + 1
    rows = [parts.examples[row] for row in window]
    targets = sum(example.targets for example in rows)

    micro_batch = parts.run.recipe.train.micro_batch
    picks = share(window, micro_batch, accelerator.process_index, accelerator.num_processes)
    learning_rate = parts.step.optimizer.param_groups[0]["lr"]
    loss_scale = parts.step.scaling.scale if parts.step.scaling else None
    micro_batches = batches(parts.examples, picks, parts.make_batches)
    loss_sum, norm, skipped = _make_step(parts, at, micro_batches, targets)
    mean = loss_sum.item() / targets  # waits for the device, so the time below is the step's own
    _must_be_finite(number, mean, norm.item(), skipped=skipped)
    return StepReport(
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


def _make_step(parts: Parts, at: Position, micro_batches: Iterable[Batch], targets: int) -> tuple[Tensor, Tensor, bool]:
    """Make a step: the sum of all processes' losses, the gradient's norm, and whether its overflow had it skipped.

    The schedule goes on only with steps that are made, as in accelerate.
    """
    scaling = parts.step.scaling
    loss_sum, norm = parts.step.make(
        micro_batches,
        targets,
        reduce=partial(parts.step.trainables.reduce, parts.accelerator),
        enter=partial(at.enter, parts),
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
