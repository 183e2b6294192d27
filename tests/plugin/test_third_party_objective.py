"""Somebody's own objective, in a file beside a recipe: it is found, listed, checked, trained, measured and forecast."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fitune.errors import FtError
from fitune.memory.cards.cards import find_card
from fitune.memory.forecast import forecast
from fitune.memory.shapes import of_recipe
from fitune.plugin.registry import Registry
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry
from support.tiny import metrics, train

HINGE = '''
"""Objective `hinge`: the chosen answer's log-probability above the rejected one's, by a margin."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt
from fitune import Criterion, Objective, Outcome, hookimpl


@dataclass(frozen=True, slots=True, kw_only=True)
class HingeOptions:
    """Options of the objective `hinge`."""

    margin: Annotated[float, Gt(0)] = 1.0
    """In nats."""


class Hinge(Criterion):
    measures = ("won",)

    def __init__(self, options):
        self.margin = options.margin

    def units(self, example):
        return example.documents // 2

    def loss(self, model, batch, scores):
        import torch

        log_probs, role = scores.log_probs(model, batch), batch.extras["role"]
        pairs = (role[:-1] == 1) & (role[1:] == -1)
        gaps = log_probs[:-1] - log_probs[1:]
        losses = torch.where(pairs, torch.relu(self.margin - gaps), 0.0)
        won = (pairs & (gaps > self.margin)).float().sum()
        return Outcome(loss=losses.sum(), measures={NAME: (won, pairs.float().sum())})


@hookimpl
def ft_objectives():
    yield Objective(name="hinge", summary="A margin between answers", options=HingeOptions, make=Hinge, takes="pairs")
'''


@pytest.fixture
def recipe(recipe_path: Path) -> Path:
    """The tiny recipe with pairs for its data, and the plugin beside it."""
    rows = [{"prompt": "ab", "chosen": "yes " * (1 + n % 2), "rejected": "no " * (1 + n % 3)} for n in range(8)]
    (recipe_path.parent / "data.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    write(recipe_path, '"won"')
    return recipe_path


def write(recipe: Path, name: str) -> None:
    (recipe.parent / "hinge.py").write_text(HINGE.replace("NAME", name), encoding="utf-8")


def asked(recipe: Path, options: str = "") -> tuple[str, ...]:
    """Overrides that use it."""
    return (f'plugins=["{recipe.parent / "hinge.py"}"]', f'objective={{use="hinge"{options}}}', "train.length=128")


def test_it_trains(recipe: Path, tmp_path: Path) -> None:
    train(recipe, tmp_path / "run", *asked(recipe, ", margin=20"), "train.steps=8", "train.learning_rate=1e-2")
    lines = metrics(tmp_path / "run")
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert {line["won"] for line in lines} <= {0.0, 0.5, 1.0}


def test_it_is_forecast(recipe: Path) -> None:
    read = read_recipe(recipe, open_registry(), asked(recipe))
    assert forecast(read, of_recipe(read), find_card("a10g")).allocated > 0


def test_its_options_are_checked(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(FtError, match='"margin" is -1'):
        train(recipe, tmp_path / "run", *asked(recipe, ", margin=-1"))


def test_a_measure_that_was_not_announced(recipe: Path, tmp_path: Path) -> None:
    write(recipe, '"lost"')
    with pytest.raises(FtError, match="measures lost, which"):
        train(recipe, tmp_path / "run", *asked(recipe))


def test_it_is_listed(recipe: Path) -> None:
    registry: Registry = open_registry()
    registry.load_file(recipe.parent / "hinge.py")
    (found,) = (one for one in registry.provided if one.record.name == "hinge")
    assert found.kind == "objective"
