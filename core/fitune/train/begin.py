"""From what a run is to be to the files that it leaves: what `ft run` and `fitune.run` share."""

from __future__ import annotations

import contextlib
from pathlib import Path

from fitune.compose.processes import is_main_process
from fitune.data.prepare import UNWATCHED, Watch
from fitune.errors import RunError, cause
from fitune.memory.background import beside_run
from fitune.plugin.registry import Registry
from fitune.plugin.timings import Timings
from fitune.runs.atomic import sweep
from fitune.runs.layout import RECIPE
from fitune.runs.links import must_not_lead_out
from fitune.runs.lock import RunLock
from fitune.runs.provenance import mend_recipe
from fitune.train.run import run
from fitune.train.start import Start, make_directory, remove_if_empty


def begin(
    start: Start,
    registry: Registry,
    *,
    force: bool = False,
    watch: Watch = UNWATCHED,
    timings: Timings | None = None,
) -> Path:
    """Train in the run's directory, which no other process may write to meanwhile; nothing, if the run is done. Gives
    that directory, which may have another name than `start` has if it was not named.

    On a GPU its memory is forecast beside it; without `force`, one that will not fit is refused. Raises the errors of
    `fitune.errors`.
    """
    main_process = is_main_process()
    if start.done:
        _tidy(start, watch)
        return start.directory
    start, made = make_directory(start) if main_process else (start, [])
    try:
        with contextlib.ExitStack() as stack:
            forecaster = None
            if main_process:
                stack.enter_context(RunLock(start.directory))
                must_not_lead_out(start.directory)
                granted = frozenset(registry.trust.granted)
                forecaster = stack.enter_context(
                    beside_run(
                        third_party=registry.third_party,
                        granted=granted,
                        force=force,
                        wanted=not start.recipe.memory.fit,  # which forecasts what it chooses
                    )
                )
            run(start.recipe, registry, start.directory, watch, forecaster, resume=start.resume, timings=timings)
    finally:
        remove_if_empty(made)
    return start.directory


def _tidy(start: Start, watch: Watch) -> None:
    """Delete what a process left that was killed once the run was done, if nobody is at work there; and write the
    recipe again where it is damaged.
    """
    if is_main_process():
        with contextlib.suppress(RunError), RunLock(start.directory):
            sweep(start.directory)
            try:
                mended = mend_recipe(start.recipe, start.directory)
            except OSError as error:
                mended = f"{start.directory / RECIPE} is damaged, and cannot be written: {cause(error)}"
            if mended is not None:
                watch.tell(mended)
