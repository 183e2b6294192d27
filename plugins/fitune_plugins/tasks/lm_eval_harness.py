"""Task suite `lm-eval`: the tasks of lm-evaluation-harness, on the model as the run evaluates it.

The harness is asked for scores alone: no sample is written, nothing is reported to anybody, and no task may run code
that a model has written. Data of its tasks come from the hub, which it loads by itself; a directory may describe
others.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fitune import NoOptions, Problem, RunError, TaskRequest, TaskScores, TaskSuite, hookimpl, nearest, one_line

INSTALL = "pip install 'fitune[lm-eval]'"


def _check(options: NoOptions) -> Iterable[Problem]:
    if importlib.util.find_spec("lm_eval") is None:
        yield Problem(key="use", what="the package lm-eval is not installed", fix=f"Install it: {INSTALL}")


def _measure(options: NoOptions, asked: TaskRequest) -> TaskScores:
    with _quiet():
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        manager = _manager(asked)
        whole: Any = HFLM
        model = whole(
            pretrained=asked.model,
            tokenizer=asked.tokenizer,
            batch_size=asked.batch,
            device=str(asked.model.device),
        )
        try:
            found: Any = simple_evaluate(
                model=model,
                tasks=list(asked.tasks),
                num_fewshot=asked.shots,
                limit=asked.limit,
                task_manager=manager,
                apply_chat_template=asked.chat,
                log_samples=False,
                bootstrap_iters=0,
            )
        except Exception as error:  # data that cannot be had, a description that is wrong: whatever others wrote
            what = one_line(f"{type(error).__name__}: {error}")
            raise RunError(f"lm-eval cannot measure {', '.join(asked.tasks)}: {what}") from error
    return dict(_scores(found["results"]))


def _manager(asked: TaskRequest) -> Any:
    """What knows the tasks. Raises `RunError` for one that it does not know."""
    from lm_eval.tasks import TaskManager

    known: list[str] = []
    if asked.directory is not None:
        if not asked.directory.is_dir():
            raise RunError(f"--tasks-from {asked.directory}: no such directory")
        own = TaskManager(include_path=str(asked.directory), include_defaults=False)
        known = list(own.all_tasks)
        if set(asked.tasks) <= set(known):
            return own
    manager = TaskManager(include_path=None if asked.directory is None else str(asked.directory))
    known = list(manager.all_tasks)
    for task in asked.tasks:
        if task not in known:
            raise RunError(f'lm-eval has no task "{task}". {nearest(task, known)}')
    return manager


def _scores(results: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, float]]]:
    """Numbers alone, without the harness' own names of filters where there is none."""
    for task, measures in results.items():
        found = {
            name.removesuffix(",none"): float(value)
            for name, value in measures.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and "," in name and "_stderr" not in name
        }
        if found:
            yield task, found


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the remarks of the harness: what is wrong with a task is raised."""
    log = logging.getLogger("lm_eval")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


@hookimpl
def ft_task_suites() -> Iterable[TaskSuite[NoOptions]]:
    """Offer the suite."""
    yield TaskSuite(
        name="lm-eval",
        summary="Tasks of lm-evaluation-harness (MMLU, GSM8K, HellaSwag, ...), or of a directory",
        options=NoOptions,
        measure=_measure,
        check=_check,
    )
