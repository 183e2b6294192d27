"""`ft eval --tasks`: what was trained, and what it was trained from, by a suite of tasks that a plugin offers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fitune.compose.devices import free_memory
from fitune.compose.dialogue import dialogue_of
from fitune.errors import RunError, cause
from fitune.plugin.contract import blame
from fitune.plugin.digest import digest_of
from fitune.plugin.registry import Registry
from fitune.plugin.tasks import TaskRequest, TaskScores, TaskSuite
from fitune.plugin.trust import Trust
from fitune.trained.open import Trained, must_write, open_run


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be measured."""

    tasks: tuple[str, ...]
    shots: int | None = None
    limit: int | None = None
    directory: Path | None = None


def suite_of(registry: Registry, name: str) -> tuple[TaskSuite[Any], Any]:
    """A suite with its options, which are as they are by default. Raises `RunError` if it cannot work."""
    suite: TaskSuite[Any] = registry.find(TaskSuite, name)
    options = suite.options()
    with blame(f'the check of the task suite "{name}"'):
        problems = list(suite.check(options))
    if problems:
        raise RunError(f"{problems[0].what}. {problems[0].fix}".rstrip(". ") + ".")
    return suite, options


def must_be_known(directory: Path, trust: Trust) -> None:
    """Raise `UnknownCode` if a directory that describes tasks is not known on this machine: harnesses take Python code
    and templates without bounds from such descriptions. Raises `RunError` for what cannot be read.
    """
    try:
        places = sorted(place for place in directory.rglob("*") if not place.is_dir())
        if not all(place.is_file() for place in places):
            raise RunError(f"{next(place for place in places if not place.is_file())} is no file. Take it out")
        said = "\n".join(f"{place.relative_to(directory).as_posix()!r} {digest_of(place)}" for place in places)
    except OSError as error:
        raise RunError(f"{directory} cannot be read: {cause(error)}. Give another directory") from error
    trust.must_know(directory, said.encode(), "code in its descriptions of tasks would run")


def measure(trained: Trained, suite: TaskSuite[Any], options: Any, asked: Asked, *, base: bool = False) -> TaskScores:
    """The scores of what was trained, or of the model as it was before. Raises the errors of `fitune.errors`."""
    must_write(trained, "--tasks")
    opened = open_run(trained, base=base)
    tokenizer: Any = opened.tokenizer
    dialogue = dialogue_of(trained.recipe, opened.context)
    if dialogue is not None:
        tokenizer.chat_template = dialogue.template
    request = TaskRequest(
        model=opened.model,
        tokenizer=tokenizer,
        tasks=asked.tasks,
        chat=dialogue is not None,
        shots=asked.shots,
        limit=asked.limit,
        batch=trained.recipe.evaluation.micro_batch,
        directory=asked.directory,
    )
    device = opened.device
    with blame(f'the task suite "{suite.name}"'):
        found = {task: dict(scores) for task, scores in suite.measure(options, request).items()}
    del opened, request
    free_memory(device)
    return found


def lines(before: TaskScores | None, after: TaskScores | None) -> Iterator[tuple[str, ...]]:
    """Rows of a table: task, measure, before training and after; those that were not measured are left out."""
    columns = [(name, one) for name, one in (("before", before), ("after", after)) if one is not None]
    yield ("task", "measure", *(name for name, _ in columns))
    whole = columns[-1][1]
    for task, scores in whole.items():
        for measure_name in scores:
            found = (one.get(task, {}).get(measure_name) for _, one in columns)
            yield (task, measure_name, *("-" if value is None else f"{value:.4f}" for value in found))


def named(scores: TaskScores | None) -> Any:
    """For JSON."""
    return None if scores is None else {task: dict(found) for task, found in scores.items()}
