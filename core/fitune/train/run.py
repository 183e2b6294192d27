"""The life of a run, from top to bottom: choose, compose, rehearse, train, save; on a shortage of memory choose again.

Memory that runs out costs the step in which it does, and the time to load the model again; nothing that was learnt.
Whatever else ends a run, what it has learnt is in a checkpoint, if it can be. What happens is told to plugins.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from fitune.checkpoint.begin import begun_from
from fitune.checkpoint.state import capture
from fitune.compose.parts import Forecaster, Parts, whole_for_writing
from fitune.compose.processes import is_main_process, process_index
from fitune.compose.together import together
from fitune.data.prepare import UNWATCHED, Watch
from fitune.errors import FtError
from fitune.memory.fit.refit import Refitter, refitter_of
from fitune.plugin.events import Notice, Run, StepReport
from fitune.plugin.recipe import Recipe
from fitune.plugin.registry import Registry
from fitune.plugin.timings import FIRST_STEP, Timings
from fitune.runs.card import write_card
from fitune.train.assemble import assemble
from fitune.train.choose import choose, choose_again, go_on_with
from fitune.train.context import RunContext
from fitune.train.events import Events
from fitune.train.handover import handed_over
from fitune.train.keeper import Keeper
from fitune.train.loop import is_done, train
from fitune.train.out_of_memory import OutOfMemory
from fitune.train.position import Position
from fitune.train.recovery import recovery_of, shortage_of
from fitune.train.rehearsal import rehearse, rehearse_save
from fitune.train.resume import Resume, find
from fitune.train.save import save
from fitune.train.signals import asked_by_signals


def run(
    recipe: Recipe,
    registry: Registry,
    directory: Path,
    watch: Watch = UNWATCHED,
    forecaster: Forecaster | None = None,
    refit: Refitter | None = None,
    resume: Resume | None = None,
    timings: Timings | None = None,
) -> Run:
    """Train as the recipe says and save what was trained in `directory`; `watch` is told of data being prepared.

    A forecaster says what the run will take of the card, before its first step, and may refuse it; `refit` finds what
    to go on with where memory runs out all the same, in place of the search that `[memory] fit` makes on a GPU. With
    `resume` the run in `directory` goes on from its newest checkpoint; `timings` notes how long it takes to its first
    step. Raises the errors of `fitune.errors`.
    """
    context = RunContext(
        recipe=recipe,
        registry=registry,
        events=Events(registry),
        directory=directory,
        watch=watch,
        resume=resume,
        timings=timings or Timings(),
    )
    refit = refit or _refitter(registry)
    with _told_of_its_end(context):
        context.events.listen(recipe.listeners)
        context.start = begun_from(recipe)
        if resume is not None:
            go_back(context)
        handed = handed_over()
        context.compositions.append(choose(context) if handed is None else go_on_with(context, handed, refit))
        while (shortage := _attempt(context, forecaster, refit)) is not None:
            context.compositions.append(choose_again(context, shortage, refit))
    assert context.parts is not None
    made = context.parts.run
    if is_main_process():
        write_card(made.directory, made.directory / recipe.adapter.record.directory)  # which tells of all files
    return made


def _refitter(registry: Registry) -> Refitter | None:
    """What finds strategies that take less, where memory can run out so."""
    return refitter_of(registry) if torch.cuda.is_available() else None


def _attempt(context: RunContext, forecaster: Forecaster | None, refit: Refitter | None) -> OutOfMemory | None:
    """Compose, rehearse, train and save; gives the shortage of memory that kept it from that, if one did."""
    context.position.doing = "loading"
    try:
        context.parts = assemble(context, forecaster)
        context.timings.done("beginning the run")
        rehearse_run(context, context.parts)
        context.timings.done("rehearsal")
        context.position.doing = ""
        train_run(context, context.parts)
        save_run(context, context.parts)
    except BaseException as error:
        return shortage_of(context, error, refit)
    return None


def go_back(context: RunContext) -> None:
    """Take the newest checkpoint that is whole."""
    process = process_index()
    checkpoint, damaged = find(context.directory, process, main=process == 0)
    where = "the beginning"
    if checkpoint is not None:
        progress = checkpoint.progress
        context.position = Position(progress.step, progress.evaluated)
        context.keeper, context.state = Keeper(progress, listeners=context.events.states), checkpoint.state
        context.events.restore(checkpoint.listeners)
        where = f"step {progress.step}"
    if context.resume is not None and context.resume.damaged is not None:
        what = f"{context.resume.damaged}. It is written again, by the run that goes on from {where}"
        context.notices.append(Notice(step=context.position.step, kind="damaged", what=what))
    for what in damaged:
        what = f"{what}. It is left out, and the run goes on from {where}"
        context.notices.append(Notice(step=context.position.step, kind="damaged checkpoint", what=what))


def rehearse_run(context: RunContext, parts: Parts) -> None:
    """Rehearse, if the recipe says so; then tell that the run goes on, if it had to be composed again."""
    position = context.position
    if context.recipe.memory.rehearse and not on_gpu(parts):
        rehearse_save(parts)
    elif context.recipe.memory.rehearse:
        position.doing = "rehearsal"
        assert context.loaded is not None
        context.state = context.state or capture(parts, position.step, context.loaded)
        with _alone(parts):
            context.events.notify(parts.run, rehearse(parts, context.state))
    if context.shortage is not None:
        recovery = recovery_of(context.shortage, context.compositions[-1], position.step)
        context.events.notify(parts.run, recovery)
    context.shortage = context.state = None


def train_run(context: RunContext, parts: Parts) -> None:
    """Train from where the run stands to the end. Raises `Interrupted` where it is asked to stop before that."""
    with asked_by_signals(parts.run.stop, processes=parts.run.processes), _alone(parts):
        for report in train(parts, context.position, context.keeper):
            if isinstance(report, StepReport):
                context.timings.done(FIRST_STEP)
            context.events.notify(parts.run, report)
    if not is_done(parts, context.position, context.keeper):
        raise context.keeper.interrupted(parts, context.position)


def _alone(parts: Parts) -> contextlib.AbstractContextManager[None]:
    """A context in which a process that fails leaves others waiting within a layer, where they do so."""
    return together().cut_off() if parts.run.plan.interlocked else contextlib.nullcontext()


def save_run(context: RunContext, parts: Parts) -> None:
    """Save what was trained."""
    best, notice = context.keeper.result(parts, context.position)
    with whole_for_writing(parts):
        if parts.accelerator.is_main_process:
            saved = save(parts, context.position.step, best)
            if notice is not None:
                context.events.notify(parts.run, notice)
            context.events.saved(parts.run, saved)
    together().meet()  # one that could not save tells why
    parts.accelerator.end_training()


def on_gpu(parts: Parts) -> bool:
    """Whether a run is on a GPU."""
    return bool(parts.accelerator.device.type == "cuda")


@contextlib.contextmanager
def _told_of_its_end(context: RunContext) -> Iterator[None]:
    """Tell plugins how the run ended, always."""
    error: BaseException | None = None
    try:
        yield
    except BaseException as raised:
        error = raised
        if isinstance(raised, FtError) and together().can_tell:
            raised.shared = True
        raise
    finally:  # there is no accelerator to ask where composing failed
        context.events.finished(context.recipe, context.parts.run if context.parts else None, error)
