"""`ft eval`: its options. What it does is in `fitune.trained.evaluate`, which is imported when it runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fitune.cli.places import model_option
from fitune.cli.printing import say, say_json
from fitune.cli.settings import (
    Settings,
    base_option,
    checkpoint_option,
    loading_switches,
    run_argument,
    tell_of,
    watch,
)

if TYPE_CHECKING:
    from fitune.plugin.events import EvalReport
    from fitune.trained.open import Trained


@click.command("eval")
@run_argument
@checkpoint_option
@click.option("--data", metavar="FILE", type=click.Path(path_type=Path), help="Evaluate on this file.")
@click.option("--set", "overrides", multiple=True, metavar="eval.KEY=VALUE", help="Override a key of [eval].")
@base_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@model_option
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
) -> None:
    """Measure loss and exact match of what RUN trained on its held-out data, as its recipe says."""
    from fitune.trained.evaluate import evaluate, find_to_evaluate

    trained = find_to_evaluate(run, settings.registry(), checkpoint, overrides, data, model)
    tell_of(trained)
    report = evaluate(trained, base=base, watch=watch())
    _print_evaluation(trained, report, base, as_json)


def _print_evaluation(trained: Trained, report: EvalReport, base: bool, as_json: bool) -> None:
    from fitune.cli.console import evaluation_text
    from fitune.runs.metrics import eval_values

    if as_json:
        which = {"run": str(trained.directory), "checkpoint": trained.checkpoint, "base": base, "step": report.step}
        say_json({**which, **eval_values(report)})
    else:
        say(evaluation_text(report))
