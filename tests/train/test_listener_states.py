"""The state of a run's listeners: kept and restored with its checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fitune import Interrupted, PluginError, StepReport, hookimpl
from fitune.checkpoint.files import newest
from fitune.checkpoint.manifest import write_manifest
from support.counting import MINE, Counter, Offering
from support.resuming import Stopper, go, stop
from support.tiny import metrics, train


def test_a_state_goes_on_from_the_checkpoint_of_a_run_that_was_stopped(recipe_path: Path, tmp_path: Path) -> None:
    plugin = Offering(Counter)
    with pytest.raises(Interrupted):
        go(recipe_path, 'listener=[{use="mine", first=10}]', plugins=[plugin, Stopper(2)], out=tmp_path / "run")
    place = tmp_path / "run" / "checkpoints" / "step-2"
    states = json.loads((place / "listeners.json").read_text())
    assert states["mine"] == {"count": 12, "of": ["steps", None, 0.5]}
    assert set(states) == {"mine", "metrics"}
    assert "listeners.json" in json.loads((place / "manifest.json").read_text())["files"]
    go(tmp_path / "run", plugins=[plugin])
    assert plugin.made[1].told == ["started at 12", "finished at 13"]


def test_a_state_goes_back_to_the_checkpoint_of_a_run_that_was_killed(recipe_path: Path, tmp_path: Path) -> None:
    """What was counted behind the checkpoint is counted again, not twice."""

    class Killed(BaseException):
        """Takes the process at once: nothing is saved."""

    class Kill:
        @hookimpl
        def ft_step_done(self, step: StepReport) -> None:
            if step.step == 2:
                raise Killed

    plugin = Offering(Counter)
    with pytest.raises(Killed):
        go(recipe_path, MINE, "checkpoint.steps=1", plugins=[Kill(), plugin], out=tmp_path / "run")
    assert plugin.made[0].count == 2
    go(tmp_path / "run", plugins=[plugin])
    assert plugin.made[1].told == ["started at 1", "finished at 3"]


def test_a_checkpoint_without_states_is_one_of_0_1(recipe_path: Path, tmp_path: Path) -> None:
    stop(recipe_path, tmp_path / "run", 2)
    place = tmp_path / "run" / "checkpoints" / "step-2"
    (place / "listeners.json").unlink()
    write_manifest(place, 2)
    plugin = Offering(Counter)
    go(tmp_path / "run", MINE, plugins=[plugin])  # which the run did not have before
    assert plugin.made[0].told == ["started at 0", "finished at 1"]


def test_the_state_of_a_listener_that_the_recipe_no_longer_names_is_left(recipe_path: Path, tmp_path: Path) -> None:
    plugin = Offering(Counter)
    with pytest.raises(Interrupted):
        go(recipe_path, MINE, plugins=[plugin, Stopper(2)], out=tmp_path / "run")
    go(tmp_path / "run", "listener=[]", plugins=[plugin])
    assert len(plugin.made) == 1


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (lambda self: 1 / 0, 'listener "mine": state failed: ZeroDivisionError: division by zero ('),
        (lambda self: {"path": Path("x")}, 'listener "mine": state failed: TypeError: Object of type'),
        (lambda self: {"loss": float("nan")}, 'listener "mine": state failed: ValueError: Out of range float'),
        (lambda self: {1: "one"}, "listener \"mine\": state gave {1: 'one'}: give a mapping whose keys are strings"),
        (lambda self: ["one"], "listener \"mine\": state gave ['one']: give a mapping whose keys are strings"),
    ],
)
def test_a_state_that_cannot_be_kept_loses_no_checkpoint(
    recipe_path: Path, tmp_path: Path, state: Callable[[Counter], Any], says: str
) -> None:
    plugin = Offering(type("Failing", (Counter,), {"state": state}))
    train(recipe_path, tmp_path / "run", MINE, plugins=[plugin])
    found, wrong = newest(tmp_path / "run")
    assert found is not None
    assert (found.progress.step, set(found.listeners), wrong) == (3, {"metrics"}, [])
    (notice,) = metrics(tmp_path / "run", "notice")
    assert (notice["step"], notice["kind"]) == (3, "listener's state not saved")
    assert notice["what"].startswith(says)
    assert notice["what"].endswith("The checkpoint of step 3 is written without it")


def test_a_state_that_cannot_be_restored_ends_the_run_before_a_weight_is_read(
    recipe_path: Path, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        go(recipe_path, MINE, plugins=[Offering(Counter), Stopper(2)], out=tmp_path / "run")
    plugin = Offering(type("Failing", (Counter,), {"restore": lambda self, state: state["nothing"]}))
    (recipe_path.parent / "model" / "model.safetensors").rename(tmp_path / "kept")
    with pytest.raises(PluginError, match=r'^listener "mine": restore failed: KeyError: .nothing. \('):
        go(tmp_path / "run", plugins=[plugin])
    (tmp_path / "kept").rename(recipe_path.parent / "model" / "model.safetensors")
    go(tmp_path / "run", "listener=[]", plugins=[plugin])  # nothing was lost
    assert len(metrics(tmp_path / "run")) == 3
