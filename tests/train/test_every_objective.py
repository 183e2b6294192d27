"""Whatever is minimised, a run is rehearsed, goes on and recovers to the bit, and works with every kind of model."""

from __future__ import annotations

from pathlib import Path

import pytest

from fitune.checkpoint.module_state import module_state
from fitune.checkpoint.state import capture
from fitune.train.rehearsal import rehearse
from support.objectives import OBJECTIVES, asked, write_preference_recipe
from support.resuming import curve, go, stop, weights
from support.running_out import Traps, run_trapped
from support.states import assert_same, values_of
from support.tiny import metrics, parts_of, train

STEPS = ("train.steps=3", "eval.before=false")
EVERY = pytest.mark.parametrize("name", OBJECTIVES)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_preference_recipe(tmp_path_factory.mktemp("every") / "recipe", {"deterministic": True})


def same(one: Path, other: Path) -> None:
    """Both runs learnt the same, to the bit."""
    assert curve(one) == curve(other)
    assert_same(weights(one), weights(other))


@EVERY
def test_it_goes_on_to_the_bit(name: str, recipe: Path, tmp_path: Path) -> None:
    given = (*STEPS, asked(name), "adapter.dropout=0.3")
    go(recipe, *given, out=tmp_path / "whole")
    stop(recipe, tmp_path / "parted", 2, *given)
    go(tmp_path / "parted")
    same(tmp_path / "parted", tmp_path / "whole")


@EVERY
def test_memory_that_runs_out_is_recovered_from_to_the_bit(name: str, recipe: Path, tmp_path: Path) -> None:
    """In the second step: a reference is asked in evaluation mode, and apart documents are proven in training's."""
    trap = 'memory.strategy=[{use="trap"}]'
    given = (*STEPS, asked(name), "adapter.dropout=0.3", trap)
    run_trapped(recipe, tmp_path / "plain", Traps(), *given)
    traps = Traps(("forward", 3))
    run_trapped(recipe, tmp_path / "run", traps, *given)
    assert [recovery.step for recovery in traps.recoveries] == [1]
    same(tmp_path / "run", tmp_path / "plain")


@EVERY
def test_a_rehearsal_leaves_nothing_behind(name: str, recipe: Path) -> None:
    parts = parts_of(recipe, asked(name), "adapter.dropout=0.3")
    before = values_of(parts)
    parts.run.directory.mkdir(exist_ok=True)
    report = rehearse(parts, capture(parts, 0, module_state(parts.run.model)))
    assert report.evaluated
    assert_same(values_of(parts), before)


KINDS = {
    "packed": ('data.stage=[{use="preferences"}, {use="chat"}, {use="pack"}]', "train.length=128"),
    "nf4": ('memory.strategy=[{use="nf4"}]', 'model.dtype="bfloat16"'),
    "dora": ("adapter.dora=true",),
    "float16": ('model.dtype="float16"',),
    "in chunks": ('memory.strategy=[{use="chunked-loss", tokens=5}, {use="gradient-checkpointing"}]',),
    "fast layers": ('memory.strategy=[{use="fast-layers"}]', "adapter.targets=all-linear"),
    "accumulated": ("train.accumulation=2", "train.micro_batch=1"),
    "whole": ('adapter={use="none"}', "train.learning_rate=2e-3"),
}


COVERED = [(kind, name) for name in ("dpo", "kto", "reward") for kind in KINDS]
COVERED += [(kind, name) for name in ("dpo, prepared", "orpo") for kind in ("packed", "whole")]
"""Objectives with a reference, of judged answers, and of scores with all; two more with those that change the most."""


@pytest.mark.parametrize(("kind", "name"), COVERED)
def test_it_learns_with_every_kind_of_model(kind: str, name: str, recipe: Path, tmp_path: Path) -> None:
    objective = asked(name)
    if kind == "whole":
        objective = objective.replace('"adapter-off"', '"prepared"')
    train(recipe, tmp_path / "run", objective, *KINDS[kind])
    before, after = metrics(tmp_path / "run", "evaluation")
    assert after["loss"] < before["loss"]
    assert after["accuracy"] >= before["accuracy"]
