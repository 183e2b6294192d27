"""Composes a run's parts, sees that it is the run that it was, and puts it where it stood."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fitune.checkpoint.module_state import module_state
from fitune.checkpoint.state import restore
from fitune.compose.parts import Forecaster, Parts, compose
from fitune.errors import RunError, cause
from fitune.memory.fit.refit import Composition, Foreseen
from fitune.plugin.events import Notice
from fitune.runs.atomic import set_aside
from fitune.runs.base import UNKNOWN, commit_of
from fitune.runs.identity import write_identity
from fitune.runs.layout import CHECKPOINTS
from fitune.runs.provenance import write_environment, write_recipe
from fitune.runs.used_plugins import UNKNOWN as UNKNOWN_PLUGINS
from fitune.train.context import RunContext
from fitune.train.resume import identity_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def assemble(context: RunContext, forecaster: Forecaster | None) -> Parts:
    """Compose the last of the compositions, with what was learnt before; a forecaster is for the first alone."""
    composition, first = context.compositions[-1], not context.begun
    context.begun = True
    if composition.forecast is not None:  # it was made for the choice
        forecaster = Foreseen(composition.forecast)
    elif not first:
        forecaster = None
    parts = compose(
        composition.recipe,
        context.directory,
        context.watch,
        forecaster,
        run_data=context.run_data,
        fitted=composition.lines,
        resumed=None if context.resume is None else context.position.step,
        evaluated=context.position.evaluated,
        start=context.start,
        stop=context.stop,
        timings=context.timings,
    )
    context.compositions[-1] = Composition(
        recipe=composition.recipe, forecast=parts.run.forecast, lines=composition.lines
    )
    context.directory = parts.run.directory  # the first process may have given it a name
    context.run_data, context.loaded = parts.run_data, module_state(parts.run.model)
    if first:
        must_have_steps_left(context, parts)
        must_be_same(context, parts)
    name_revision(parts.run.model, commit_of(context.base))
    if context.state is not None:
        restore(parts, context.state)
    context.keeper.begin(parts, context.loaded)
    if parts.accelerator.is_main_process:
        with _written(context):
            write_recipe(composition.recipe, context.directory)
    if first:
        context.events.started(parts.run)
        for notice in context.notices:
            context.events.notify(parts.run, notice)
    return parts


def must_have_steps_left(context: RunContext, parts: Parts) -> None:
    """Raise `RunError`, before anything is moved, where a run has made more steps than its recipe now asks for."""
    made, wanted = context.position.step, parts.run.steps
    if made > wanted:
        raise RunError(
            f"{context.directory} has made {made} steps, and its recipe now asks for {wanted} ([train] steps, epochs, "
            f"and the number of rows). Ask for at least {made}, or use what it had learnt by then: its checkpoints are "
            f"in {context.directory / CHECKPOINTS}"
        )


def must_be_same(context: RunContext, parts: Parts) -> None:
    """Note what the run is; one that goes on must be what it was. Raises `RunError`."""
    recipe, directory, resume = context.recipe, context.directory, context.resume
    identity = identity_of(parts, recipe, context.registry, context.start)
    context.base = identity.base
    if resume is not None:
        resume.must_be_same(directory, identity)
        if not resume.knows_base():
            context.notices.append(Notice(step=context.position.step, kind="base", what=UNKNOWN))
        if not resume.knows_plugins(identity):
            context.notices.append(Notice(step=context.position.step, kind="plugins", what=UNKNOWN_PLUGINS))
        if (what := resume.other_processes(identity)) is not None:
            context.notices.append(Notice(step=context.position.step, kind="processes", what=what))
        if others := resume.other_versions(identity):
            what = f"other versions than when the run began: {'; '.join(others)}. Numbers may differ by rounding"
            context.notices.append(Notice(step=context.position.step, kind="versions", what=what))
    if not parts.accelerator.is_main_process:
        return
    with _written(context):
        write_identity(directory, identity)  # the first file of all: with it, a run can go on
        write_environment(recipe, context.registry, directory, model_commit=commit_of(identity.base))
        moved = set_aside(directory / recipe.adapter.record.directory)
    if moved is not None:
        what = f"what this run had trained to its end before is now in {moved}"
        context.notices.append(Notice(step=context.position.step, kind="moved", what=what))


@contextlib.contextmanager
def _written(context: RunContext) -> Iterator[None]:
    """Raise `RunError` where a file that the run cannot do without cannot be written."""
    try:
        yield
    except OSError as error:
        place = error.filename if isinstance(error.filename, str) else context.directory
        again = f"then: ft run {context.directory}" if context.position.step else "or give another --out"
        raise RunError(f"{place} could not be written: {cause(error)}. Nothing is lost. Mend that, {again}") from error


def name_revision(model: PreTrainedModel, commit: str | None) -> None:
    """Have what peft writes of its adapters name the commit of their base, as `revision`."""
    for config in getattr(model, "peft_config", {}).values():
        config.revision = commit or config.revision
