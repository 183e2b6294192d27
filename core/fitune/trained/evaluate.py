"""`ft eval`: a trained model on held-out data, as its run evaluates it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import tomli

from fitune.data.prepare import UNWATCHED, Watch
from fitune.errors import RunError
from fitune.plugin.events import EvalReport
from fitune.plugin.registry import Registry
from fitune.runs.layout import RECIPE
from fitune.runs.lines import readable_metrics
from fitune.trained.open import Trained, find, open_run

if TYPE_CHECKING:
    from fitune.plugin.recipe import Recipe

TABLE = "eval."
"""What overrides begin with: the rest of the recipe is what was trained."""


def find_to_evaluate(
    directory: Path,
    registry: Registry,
    checkpoint: str | None = None,
    overrides: Sequence[str] = (),
    data: Path | None = None,
    model: Path | None = None,
) -> Trained:
    """What was trained, with the recipe that says how to evaluate it: on a file, where one is given.

    Raises the errors of `fitune.errors`.
    """
    for override in overrides:
        if not override.strip().startswith(TABLE):
            raise RunError(f"--set {override}: what was trained is as it is. Here, --set takes keys of [eval] alone")
    if data is None:
        trained = find(directory, registry, checkpoint, overrides, model)
        if not (trained.recipe.eval_sources or trained.recipe.evaluation.fraction):
            raise RunError(f"{directory}: its recipe holds no data out. Give a file to evaluate on: --data FILE")
        return trained
    asked = [f"data.path={json.dumps(str(data.resolve()))}"]
    if not _has_evaluation(directory / RECIPE):
        asked.append("eval.fraction=0.5")  # the reader wants to know what on; the file takes its place
    trained = find(directory, registry, checkpoint, [*asked, *overrides], model)
    if not data.is_file():
        raise RunError(f"--data {data}: no such file")
    return replace(trained, recipe=on_file(trained.recipe))


def on_file(recipe: Recipe) -> Recipe:
    """A recipe whose data are one file (`[data] path`), all of it held out."""
    return replace(recipe, eval_sources=recipe.sources, evaluation=replace(recipe.evaluation, fraction=None))


def evaluate(trained: Trained, *, base: bool = False, watch: Watch = UNWATCHED) -> EvalReport:
    """Evaluate what was trained, or the model before the first step. Raises the errors of `fitune.errors`."""
    from fitune.checkpoint.begin import begun_from
    from fitune.compose.dialogue import dialogue_of
    from fitune.compose.evaluate import Evaluator
    from fitune.compose.objective import objective_of
    from fitune.compose.reference import scored_rows
    from fitune.compose.stopping import ends_of
    from fitune.data.prepare import batch_maker, held_out_data

    opened, recipe = open_run(trained, base=base), trained.recipe
    held_out = held_out_data(recipe, opened.context, watch)
    assert held_out is not None
    make_batches = batch_maker(recipe.stages, opened.context)
    evaluator = Evaluator(
        settings=recipe.evaluation,
        examples=scored_rows(
            recipe,
            opened.plan,
            make_batches,
            opened.device,
            lambda: open_run(trained, base=True).model,
            begun_from(recipe) if recipe.objective.reference == "prepared" else None,
            watch,
            held_out,
        ),
        make_batches=make_batches,
        objective=objective_of(recipe, opened.plan, opened.device),
        model=opened.model,
        tokenizer=opened.tokenizer,
        accelerator=opened.accelerator,
        ends=ends_of(opened.tokenizer, dialogue_of(recipe, opened.context)),
        length=recipe.train.length,
    )
    return evaluator.evaluate(0 if base else steps_of(trained))


def steps_of(trained: Trained) -> int:
    """Steps that were trained, by the name of the checkpoint or the run's metrics; 0 where neither tells."""
    from fitune.trained.checkpoints import STEP

    match = STEP.fullmatch(trained.checkpoint or "")
    if match:
        return int(match[1])
    return max((line.step for line in readable_metrics(trained.directory).lines), default=0)


def _has_evaluation(recipe: Path) -> bool:
    try:
        return "eval" in tomli.loads(recipe.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
