"""The training loop, from top to bottom.

A run composes its parts, then makes optimizer steps. The gradient of a step is exact: the sum over all target tokens
of the step's micro-batches, in every process, divided by their number. What happens is told to plugins as events.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fitune.after.card import write_card
from fitune.attempts import Attempts
from fitune.checkpoints.keeper import Keeper
from fitune.checkpoints.resuming import Resume
from fitune.compose import Forecaster, Parts
from fitune.dataflow import Example
from fitune.evaluate import EvaluationStopped
from fitune.events import CheckpointReport, EvalReport, Notice, Run, StepReport
from fitune.fitting import Refitter
from fitune.judging import Judge
from fitune.measure import measure_memory
from fitune.order import share, windows
from fitune.prepare import UNWATCHED, Watch, batches
from fitune.processes import is_main_process
from fitune.recipe import Evaluation, Recipe
from fitune.recovery import Position
from fitune.registry import Registry
from fitune.saving import save
from fitune.stopping import asked_by_signals
from fitune.telling import Teller
from fitune.watching import Watcher

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Report = StepReport | EvalReport | CheckpointReport | Notice


def run(
    recipe: Recipe,
    registry: Registry,
    directory: Path,
    watch: Watch = UNWATCHED,
    forecaster: Forecaster | None = None,
    refit: Refitter | None = None,
    resume: Resume | None = None,
) -> Run:
    """Train as the recipe says and save what was trained in `directory`; `watch` is told of data being prepared.

    A forecaster says what the run will take of the card, before its first step, and may refuse it; `refit` finds what
    to go on with where memory runs out all the same, in place of the search that `[memory] fit` makes. With `resume`
    the run in `directory` goes on from its newest checkpoint. Raises the errors of `fitune.errors`.
    """
    attempts = Attempts(recipe, registry, directory, watch, forecaster, refit, resume)
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
    made = attempts.parts.run
    if is_main_process():
        write_card(made.directory, made.directory / recipe.adapter.record.directory)  # which tells of all files
    return made


def _work(tell: Teller, keeper: Keeper, parts: Parts, at: Position) -> None:
    """Train from there to the end, and save. Raises `Interrupted` where the run is asked to stop before that."""
    with asked_by_signals(parts.run.stop):
        for report in train(parts, at, keeper):
            tell.report(parts.run, report)
    if not _is_done(parts, at):
        raise keeper.interrupted(parts, at)
    if parts.accelerator.is_main_process:
        saved = save(parts)
        tell.saved(parts.run, saved)
    parts.accelerator.wait_for_everyone()
    parts.accelerator.end_training()


def train(parts: Parts, at: Position | None = None, keeper: Keeper | None = None) -> Iterator[Report]:
    """Make every step of the run that is left at a position; gives a report of each step, evaluation and checkpoint,
    and notices. Ends early where the run is asked to stop; without a keeper nothing is written.
    """
    at, watcher = at or Position(), Watcher() if keeper is None else keeper.watcher
    rows_of_steps = windows(len(parts.examples), parts.window, parts.run.recipe.general.seed, start=at.step)
    while True:
        if parts.evaluator and not _wishes(parts)[0] and _is_due(parts.run.recipe.evaluation, at, parts.run.steps):
            evaluated = _evaluate(parts, at)
            if evaluated is not None:
                if keeper is not None:
                    keeper.saw(evaluated)
                yield evaluated
        stop, late = _wishes(parts, keeper)
        if keeper is not None and (why := keeper.due(parts, at, stop=stop, late=late)) is not None:
            yield keeper.keep(parts, at, why)
        if stop or at.step == parts.run.steps:
            return
        at.begin(parts, "step")
        epoch, window = next(rows_of_steps)
        rows = [parts.examples[row] for row in window]
        report, judge = _step(parts, at, epoch, window, rows)
        notices = list(watcher.saw(parts, report, judge, rows))  # which may end the run, with the step not made
        at.end_step()
        yield report
        yield from notices


def _is_due(settings: Evaluation, at: Position, steps: int) -> bool:
    """Whether an evaluation is to be made before the next step."""
    if at.evaluated == at.step:
        return False
    if at.step == 0:
        return settings.before
    return at.step == steps or (settings.every is not None and at.step % settings.every == 0)


def _is_done(parts: Parts, at: Position) -> bool:
    """Whether nothing is left to do but to save."""
    return at.step == parts.run.steps and not (
        parts.evaluator and _is_due(parts.run.recipe.evaluation, at, parts.run.steps)
    )


def _wishes(parts: Parts, keeper: Keeper | None = None) -> tuple[bool, bool]:
    """Whether any of the processes is asked to stop, and whether the first finds that it is time for a checkpoint; the
    same in each.
    """
    stop, late = parts.run.stop.is_asked(), keeper is not None and keeper.late(parts)
    if parts.run.processes > 1:
        flags = torch.tensor([stop, late and parts.accelerator.is_main_process], dtype=torch.float32)
        flags = parts.accelerator.reduce(flags.to(parts.accelerator.device), reduction="sum")
        stop, late = (bool(flag > 0) for flag in flags.tolist())
        if stop:
            parts.run.stop.ask("another process of the run was asked to stop")
    return stop, late


def _evaluate(parts: Parts, at: Position) -> EvalReport | None:
    """Evaluate; None where the run is asked to stop in the midst of it, and it is to be made when the run goes on."""
    assert parts.evaluator is not None
    at.begin(parts, "evaluation")
    alone = parts.run.processes == 1  # others would wait for this one
    try:
        report = parts.evaluator.evaluate(at.step, parts.run.stop.is_asked if alone else lambda: False)
    except EvaluationStopped:
        at.cut_evaluation()
        return None
    at.end_evaluation()
    return report


def _step(
    parts: Parts, at: Position, epoch: float, window: NDArray[np.int64], rows: Sequence[Example]
) -> tuple[StepReport, Judge]:
    """Make the next step, over the rows of this window."""
    start = time.perf_counter()
    accelerator, number = parts.accelerator, at.step + 1
    targets = sum(example.targets for example in rows)

    micro_batch = parts.run.recipe.train.micro_batch
    picks = share(window, micro_batch, accelerator.process_index, accelerator.num_processes)
    learning_rate = parts.step.optimizer.param_groups[0]["lr"]
    scaling = parts.step.scaling
    loss_scale = scaling.scale if scaling else None
    judge = Judge(accelerator, scaling, parts.step.trainables.masters, look=number == 1)
    _, norm = parts.step.make(
        batches(parts.examples, picks, parts.make_batches),
        targets,
        reduce=partial(parts.step.trainables.reduce, accelerator),
        enter=partial(at.enter, parts),
        accept=judge.accept,
    )
    if judge.made:
        parts.scheduler.step()  # which goes on only with steps that are made, as in accelerate
    return StepReport(
        step=number,
        epoch=epoch,
        loss=judge.loss_sum / targets,
        learning_rate=float(learning_rate),
        grad_norm=norm.item(),
        tokens=sum(len(example.input_ids) for example in rows),
        targets=targets,
        seconds=time.perf_counter() - start,
        memory=measure_memory(accelerator.device),
        loss_scale=loss_scale,
        skipped=not judge.made,
    ), judge
