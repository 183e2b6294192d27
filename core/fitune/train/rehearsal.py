"""A rehearsal: the longest rows go through all that a run does, before its first step, and nothing is left of it.

What would end a run in its third hour ends it in its first minute: too little memory for the longest row, for the
optimizer's state or for an evaluation, an evaluation that fails, a disk without room for what is saved. Afterwards the
run is as it was, to the bit; but the allocator keeps the memory, so that no other process can take it later.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from fitune.checkpoint.module_state import module_state, set_module_state
from fitune.checkpoint.state import TrainingState, random_state, restore, set_random_state
from fitune.compose.devices import measure_memory
from fitune.compose.evaluate import Evaluator, split_answer
from fitune.compose.parts import Parts, whole_for_writing
from fitune.compose.together import together
from fitune.data.sampler import longest
from fitune.errors import PluginError, RunError, cause
from fitune.plugin.dataflow import Batch, Example
from fitune.plugin.events import RehearsalReport
from fitune.runs.atomic import begin
from fitune.train.save import write


def rehearse(parts: Parts, state: TrainingState) -> RehearsalReport:
    """Put the longest rows through two steps, an evaluation and a save; then restore the run, which is in this state.

    What fails is raised as it would be later, and leaves the run as it is by then. In a run of several processes each
    must call it.
    """
    start = time.perf_counter()
    modules = module_state(parts.run.model)
    batch = _steps(parts)
    evaluators = list(_evaluators(parts))
    with parts.step.averaged():
        for evaluator in evaluators:
            evaluator.evaluate(0)
    rehearse_save(parts)
    memory = measure_memory(parts.accelerator.device)
    restore(parts, state)
    set_module_state(parts.run.model, modules)
    return RehearsalReport(
        rows=batch.input_ids.shape[0],
        tokens=batch.input_ids.shape[1],
        evaluated=bool(evaluators),
        seconds=time.perf_counter() - start,
        memory=memory,
    )


def rehearse_save(parts: Parts) -> None:
    """Save what would be trained, and remove it: what an adapter cannot save, or a disk has no room for, is found now.
    It is all that a rehearsal without a GPU does, where memory is not scarce and steps are slow.
    """
    device = parts.accelerator.device
    random = random_state(device)
    with whole_for_writing(parts):
        if parts.accelerator.is_main_process:
            _save(parts)
    together().meet()
    set_random_state(random, device)


def _steps(parts: Parts) -> Batch:
    """Make two steps of the longest micro-batch that the rows can make, as a forecast does: only the second meets the
    optimizer's state, and, where there is accumulation, gradients that are there already.
    """
    rows = longest(parts.examples, parts.run.recipe.train.micro_batch)
    batch: Batch = next(iter(parts.make_batches(iter([rows]))))
    for times in (1, min(parts.run.plan.accumulation, 2)):
        parts.step.make(
            [batch] * times,
            parts.units(rows) * times * parts.run.plan.replicas,
            reduce=partial(parts.step.trainables.reduce, parts.accelerator),
        )
    return batch


def _evaluators(parts: Parts) -> Iterator[Evaluator]:
    """One for the loss and one for answers, as the recipe has them, each on the rows that take most."""
    if parts.evaluator is None:
        return
    settings = parts.evaluator.settings
    number = settings.micro_batch * parts.run.processes
    if settings.loss:
        rows = longest(parts.evaluator.examples, number)
        yield _evaluator(parts.evaluator, rows, loss=True)
    if settings.exact_match:
        by_prompt = sorted(parts.evaluator.examples, key=lambda row: len(split_answer(row)[0]), reverse=True)
        yield _evaluator(parts.evaluator, by_prompt[:number], loss=False)


def _evaluator(whole: Evaluator, rows: Sequence[Example], *, loss: bool) -> Evaluator:
    return Evaluator(
        settings=replace(whole.settings, loss=loss, exact_match=not loss),
        examples=rows,
        make_batches=whole.make_batches,
        objective=whole.objective,
        model=whole.model,
        tokenizer=whole.tokenizer,
        accelerator=whole.accelerator,
        ends=whole.ends,
        to_the_end=True,
        whole=whole.whole,
        in_step=whole.in_step,
        part=whole.part,
        context_parallel=whole.context_parallel,
    )


def _save(parts: Parts) -> None:
    """Save into a directory within the run's, and remove it. Raises `RunError` where that cannot be done, and
    `PluginError` where the adapter is at fault.
    """
    directory: Path | None = None
    try:
        directory = begin(parts.run.directory / "rehearsal")  # which a run that goes on deletes, after a kill
        write(parts, directory)
    except PluginError as error:
        raise PluginError(f"{error.message}. This was tried before any more is trained. Mend the plugin") from error
    except Exception as error:
        raise RunError(
            f"what this run trains cannot be saved in {parts.run.directory}: {cause(error)}. This was tried before "
            "any more is trained. Make room, or give another --out"
        ) from error
    finally:
        if directory is not None:
            with contextlib.suppress(OSError):
                shutil.rmtree(directory)
