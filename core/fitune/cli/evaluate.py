"""`ft eval`: its options. What it does is in `fitune.trained.evaluate`, which is imported when it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fitune.cli.places import model_option
from fitune.cli.printing import say, say_json
from fitune.cli.settings import (
    Settings,
    base_option,
    changed_plugins_option,
    checkpoint_option,
    loading_switches,
    run_argument,
    tell_of,
    watch,
)
from fitune.cli.threads import let_threads_sleep
from fitune.errors import RunError

if TYPE_CHECKING:
    from fitune.plugin.events import EvalReport
    from fitune.trained.open import Trained


SUITE = "lm-eval"
"""The suite of tasks that is meant where none is named."""


@click.command("eval")
@run_argument
@checkpoint_option
@click.option("--data", metavar="FILE", type=click.Path(path_type=Path), help="Evaluate on this file.")
@click.option("--set", "overrides", multiple=True, metavar="eval.KEY=VALUE", help="Override a key of [eval].")
@base_option
@click.option("--tasks", metavar="TASK,TASK", help="Measure by these tasks of a suite, before training and after.")
@click.option("--suite", metavar="NAME", help="Of the tasks.  [default: lm-eval]")
@click.option("--tasks-from", metavar="DIR", type=click.Path(path_type=Path), help="Where other tasks are described.")
@click.option("--shots", type=click.IntRange(min=0), metavar="N", help="Examples before each question of a task.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Questions of each task, at most.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@model_option
@changed_plugins_option
@loading_switches
@click.pass_obj
def eval_command(
    settings: Settings,
    /,
    run: Path,
    checkpoint: str | None,
    data: Path | None,
    overrides: Sequence[str],
    base: bool,
    as_json: bool,
    model: Path | None,
    tasks: str | None,
    **of_tasks: Any,
) -> None:
    """Measure loss and exact match of what RUN trained on its held-out data, as its recipe says.

    With --tasks, by the tasks of a suite that a plugin offers, beside the model as it was before training.
    """
    let_threads_sleep()
    from fitune.trained.evaluate import evaluate, find_to_evaluate

    if tasks is not None:
        _must_be_unset("--tasks", {"--data": data, "--set": overrides})
        _measure_tasks(settings, run, checkpoint, model, tasks, base=base, as_json=as_json, **of_tasks)
        return
    named = {f"--{name.replace('_', '-')}": value for name, value in of_tasks.items()}
    _must_be_unset("an evaluation on data, without --tasks", named)

    trained = find_to_evaluate(run, settings.registry(), checkpoint, overrides, data, model)
    tell_of(trained)
    report = evaluate(trained, base=base, watch=watch())
    _print_evaluation(trained, report, base, as_json)


def _must_be_unset(what: str, options: Mapping[str, Any]) -> None:
    """Raise `RunError` if an option is given that would have no effect."""
    given = [name for name, value in options.items() if value not in (None, ())]
    if given:
        raise RunError(f"{given[0]} has no effect with {what}. Leave it out")


def _measure_tasks(
    settings: Settings,
    run: Path,
    checkpoint: str | None,
    model: Path | None,
    tasks: str,
    *,
    base: bool,
    as_json: bool,
    suite: str | None,
    tasks_from: Path | None,
    shots: int | None,
    limit: int | None,
) -> None:
    from fitune.plugin.provided import age_of
    from fitune.plugin.tasks import TaskSuite
    from fitune.runs.history.words import aligned
    from fitune.runs.json_lines import finite
    from fitune.trained.open import find
    from fitune.trained.tasks import Asked, lines, measure, must_be_known, named, suite_of

    names = tuple(filter(None, (one.strip() for one in tasks.split(","))))
    if not names:
        raise RunError("--tasks names no task. E.g. --tasks hellaswag,arc_easy")
    registry = settings.registry()
    found, options = suite_of(registry, suite or SUITE)
    one = registry.provider(TaskSuite, suite or SUITE)
    for notice in age_of(one, registry.plugins[one.plugin], suite or SUITE):
        say(f"note: --suite {suite or SUITE}: {notice.sentence()}", err=True)
    if tasks_from is not None and tasks_from.is_dir():
        must_be_known(tasks_from, registry.trust)
    trained = find(run, registry, checkpoint, model=model)
    tell_of(trained)
    asked = Asked(tasks=names, shots=shots, limit=limit, directory=tasks_from)
    before = measure(trained, found, options, asked, base=True)
    after = None if base else measure(trained, found, options, asked)
    if as_json:
        which = {"run": str(trained.directory), "checkpoint": trained.checkpoint, "suite": found.name}
        say_json(finite({**which, "before": named(before), "after": named(after)}))
        return
    for line in aligned([*lines(before, after)]):
        say(line)


def _print_evaluation(trained: Trained, report: EvalReport, base: bool, as_json: bool) -> None:
    from fitune.cli.console import evaluation_text
    from fitune.runs.metrics import eval_values

    if as_json:
        which = {"run": str(trained.directory), "checkpoint": trained.checkpoint, "base": base, "step": report.step}
        say_json({**which, **eval_values(report)})
    else:
        say(evaluation_text(report))
