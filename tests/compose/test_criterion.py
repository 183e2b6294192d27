"""What an objective of somebody else's gives wrongly is one error that names it; what fails in the model is not its."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fitune import Criterion, NoOptions, Objective, Outcome, PluginError
from fitune.compose.criterion import must_be_criterion
from fitune.compose.loss import plain_log_probs, plain_loss
from fitune.compose.model import built, converted
from fitune.compose.objective import ObjectiveLoss, RunScores
from fitune.plugin.recipe import Use
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry
from support.preferences import pairs, policy, together


def computed(loss: Callable[..., Any], log_probs: Callable[..., Any] = plain_log_probs) -> Any:
    """What an objective with this loss gives for a batch, as a run would ask it."""

    class Own(Criterion):
        measures = ("seen",)

    Own.loss = lambda self, model, batch, scores: loss(scores.log_probs(model, batch), scores, model, batch)  # type: ignore[method-assign]
    scores = RunScores(plain_loss, log_probs, None)
    return ObjectiveLoss(Own(), scores, torch.device("cpu"), name="own")(policy(), together(pairs()))


def _raises(*_: Any) -> Any:
    raise KeyError("mine")


ONE = torch.tensor(1.0)
WRONG: dict[str, tuple[Callable[..., Any], str]] = {
    "nothing": (lambda *_: None, 'objective "own": its loss gave None, and must give a fitune.Outcome'),
    "a tensor": (lambda values, *_: values.sum(), "its loss gave a Tensor"),
    "a number": (lambda *_: Outcome(loss=1.0), "the loss of its Outcome is a float"),  # type: ignore[arg-type]
    "each document": (lambda values, *_: Outcome(loss=values), r"is a tensor of the shape \[9\]"),
    "no gradient": (lambda values, *_: Outcome(loss=values.sum().detach()), "its loss has no gradient"),
    "an error": (_raises, r'objective "own" failed: KeyError: .*mine.* \(compose/test_criterion.py:\d+\)'),
    "unknown": (lambda v, *_: Outcome(loss=v.sum(), measures={"other": (ONE, ONE)}), "measures other, which"),
    "no pair": (lambda v, *_: Outcome(loss=v.sum(), measures={"seen": ONE}), 'its measure "seen" is a Tensor'),  # type: ignore[dict-item]
    "a vector": (lambda v, *_: Outcome(loss=v.sum(), measures={"seen": (v, ONE)}), 'its measure "seen" is a tensor of'),
    "a reference": (lambda v, scores, *batch: scores.reference(*batch), "does not say that it needs one"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said(case: str) -> None:
    loss, said = WRONG[case]
    with pytest.raises(PluginError, match=said):
        computed(loss)


def test_what_is_right_is_taken() -> None:
    assert computed(lambda values, *_: Outcome(loss=-values.sum(), measures={"seen": (ONE, ONE)})).item() > 0


def test_memory_that_runs_out_and_errors_of_the_model_are_not_the_objectives() -> None:
    def short(*_: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        computed(short)
    with pytest.raises(KeyError, match="mine"):
        computed(lambda values, *_: Outcome(loss=values.sum()), log_probs=_raises)


@pytest.mark.parametrize(("units", "said"), [(0, "finds 0 units in 3 rows"), (None, "cannot count units: TypeError")])
def test_units_are_counted(units: Any, said: str) -> None:
    class Own(Criterion):
        def units(self, example: Any) -> int:
            found: int = units
            return found

    loss = ObjectiveLoss(Own(), RunScores(plain_loss, plain_log_probs, None), torch.device("cpu"), name="own")
    with pytest.raises(PluginError, match=said):
        loss.units(pairs())


def test_what_is_made_and_converted_is_looked_at(recipe_path: Path) -> None:
    with pytest.raises(PluginError, match=r"make gave None, and must give a fitune\.Criterion"):
        must_be_criterion(None, "own")
    read = read_recipe(recipe_path, open_registry(), ())
    convert: Any = lambda options, model: None  # noqa: E731
    record = Objective(name="own", summary="Own", options=NoOptions, make=lambda options: Criterion(), convert=convert)
    with pytest.raises(PluginError, match='objective "own": convert gave None, and must give a model'):
        converted(replace(read, objective=Use(record=record, options=NoOptions())), built(read))
