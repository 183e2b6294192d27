"""The training loop, from top to bottom.

A run composes its parts, then makes optimizer steps. The gradient of a step is exact: the sum over all target tokens
of the step's micro-batches, in every process, divided by their number. What happens is told to plugins as events.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fitune.compose.parts import Forecaster, Parts
from fitune.compose.processes import is_main_process
from fitune.data.prepare import UNWATCHED, Watch
from fitune.memory.fit.refit import Refitter
from fitune.plugin.events import Run
from fitune.plugin.recipe import Recipe
from fitune.plugin.registry import Registry
from fitune.runs.card import write_card
from fitune.train.attempts import Attempts
from fitune.train.events import Teller
from fitune.train.keeper import Keeper
from fitune.train.loop import _is_done, train
from fitune.train.position import Position
from fitune.train.resume import Resume
from fitune.train.save import save
from fitune.train.signals import asked_by_signals

if TYPE_CHECKING:
    pass


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
