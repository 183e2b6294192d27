"""The training loop: optimizer steps, evaluations and checkpoints in their order, and what is due when."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from fitune.compose.devices import measure_memory
from fitune.compose.evaluate import EvaluationStopped
from fitune.compose.loss_scaling import StepCheck
from fitune.compose.parts import Parts
from fitune.compose.together import together
from fitune.data.prepare import batches
from fitune.data.sampler import shares, windows
from fitune.plugin.dataflow import Batch, Example
from fitune.plugin.events import EvalReport, Notice, StepReport
from fitune.plugin.recipe import Evaluation
from fitune.runs.record import EARLY
from fitune.train.events import Report
from fitune.train.guards import Watcher
from fitune.train.keeper import Keeper
from fitune.train.position import Position

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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
                    keeper.observe(evaluated, parts.run.recipe.evaluation)
                yield evaluated
                if keeper is not None and keeper.gave_up(parts) and at.step < parts.run.steps:
                    yield _early(parts, at, keeper)
        stop, late = _wishes(parts, keeper)
        if keeper is not None and (why := keeper.due(parts, at, stop=stop, late=late)) is not None:
            yield keeper.keep(parts, at, why)
        if stop or at.step == parts.run.steps or (keeper is not None and keeper.gave_up(parts)):
            return
        at.begin(parts, "step")
        epoch, window = next(rows_of_steps)
        rows = [parts.examples[row] for row in window]
        report, check = _step(parts, at, epoch, window, rows)
        notices = list(watcher.observe(parts, report, check, rows))  # which may end the run, with the step not made
        at.end_step()
        yield report
        yield from notices
        yield from (Notice(step=at.step, kind="graphs", what=what) for what in parts.step.said())
        yield from (Notice(step=at.step, kind="no effect", what=what) for what in parts.step.without_effect())


def _is_due(settings: Evaluation, at: Position, steps: int) -> bool:
    """Whether an evaluation is to be made before the next step."""
    if at.evaluated == at.step:
        return False
    if at.step == 0:
        return settings.before
    return at.step == steps or (settings.every is not None and at.step % settings.every == 0)


def _early(parts: Parts, at: Position, keeper: Keeper) -> Notice:
    """What is told where training ends for want of better evaluations."""
    settings, best = parts.run.recipe.evaluation, keeper.progress.best_step
    by = f" by more than {settings.min_delta:g}" if settings.min_delta else ""
    of = "what was before" if best is None else f"the one after step {best}"
    last = "evaluation was" if settings.patience == 1 else f"{settings.patience} evaluations were"
    what = f"the last {last} not better{by} than {of} ([eval] patience)"
    return Notice(step=at.step, kind=EARLY, what=f"{what}: training ends after {at.step} of {parts.run.steps} steps")


def is_done(parts: Parts, at: Position, keeper: Keeper) -> bool:
    """Whether nothing is left to do but to save."""
    return (at.step == parts.run.steps or keeper.gave_up(parts)) and not (
        parts.evaluator and _is_due(parts.run.recipe.evaluation, at, parts.run.steps)
    )


def _wishes(parts: Parts, keeper: Keeper | None = None) -> tuple[bool, bool]:
    """Whether any of the processes is asked to stop, and whether the first finds that it is time for a checkpoint; the
    same in each.
    """
    stop, late = parts.run.stop.is_asked(), keeper is not None and keeper.late(parts)
    if parts.run.processes > 1:
        stop, late = together().meet(stop, late and parts.accelerator.is_main_process)
        if stop:
            parts.run.stop.ask("another process of the run was asked to stop")
    return stop, late


def _evaluate(parts: Parts, at: Position) -> EvalReport | None:
    """Evaluate; None where the run is asked to stop in the midst of it, and it is to be made when the run goes on."""
    assert parts.evaluator is not None
    at.begin(parts, "evaluation")
    alone = parts.run.processes == 1  # others would wait for this one
    try:
        with parts.step.averaged():
            report = parts.evaluator.evaluate(at.step, parts.run.stop.is_asked if alone else lambda: False)
    except EvaluationStopped:
        at.cut_evaluation()
        return None
    at.end_evaluation()
    return report


def _idle(parts: Parts, every: Sequence[Sequence[NDArray[np.int64]]], own: int) -> Iterator[Batch]:
    """What a process computes beside its own micro-batches, of which nothing counts, where layers are gathered from all
    processes: each must ask for them as often as the others.
    """
    more = max(map(len, every)) - own if parts.run.plan.sharded else 0
    return batches(parts.examples, [min(every[0], key=len)] * more, parts.make_batches)


def _step(
    parts: Parts, at: Position, epoch: float, window: NDArray[np.int64], rows: Sequence[Example]
) -> tuple[StepReport, StepCheck]:
    """Make the next step, over the rows of this window."""
    start = time.perf_counter()
    accelerator, number = parts.accelerator, at.step + 1
    targets, units = sum(example.targets for example in rows), parts.units(rows)

    micro_batch = parts.run.recipe.train.micro_batch
    tokens = [len(example.input_ids) for example in rows]
    every = shares(window, tokens, micro_batch, parts.run.plan.replicas)
    picks = every[accelerator.process_index // parts.run.plan.context_parallel]
    learning_rate = parts.step.optimizer.param_groups[0]["lr"]
    scaling = parts.step.scaling
    loss_scale = scaling.scale if scaling else None
    check = StepCheck(accelerator, scaling, parts.step.trainables.norms, look=number == 1)
    _, norm = parts.step.make(
        batches(parts.examples, picks, parts.make_batches),
        units,
        idle=_idle(parts, every, len(picks)),
        reduce=partial(parts.step.trainables.reduce, accelerator),
        enter=partial(at.enter, parts),
        accept=check.accept,
    )
    if check.made:
        parts.scheduler.step()  # which goes on only with steps that are made, as in accelerate
    return StepReport(
        step=number,
        epoch=epoch,
        loss=check.loss_sum / units,
        learning_rate=float(learning_rate),
        grad_norm=norm.item(),
        tokens=sum(len(example.input_ids) for example in rows),
        targets=targets,
        seconds=time.perf_counter() - start,
        memory=measure_memory(accelerator.device),
        loss_scale=loss_scale,
        skipped=not check.made,
        attention=parts.step.computation.attention.kernels,
        metrics=parts.step.tally.means(accelerator),
    ), check
