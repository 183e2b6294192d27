"""Training that ends when held-out data say so, and with what they say is best."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fitune import EvalReport, RecipeError
from fitune.compose.evaluate import Evaluator
from fitune.recipe.reader import read_recipe
from fitune.runs.history.show import lines, tell
from fitune.runs.record import HeldOut
from fitune.testing import open_registry
from support.after_runs import ft
from support.blows import join
from support.forked import Forks
from support.objectives import write_preference_recipe
from support.resuming import STEPS, curve, go, stop, write_resumed
from support.tiny import metrics

LOSSES = {0: 9.0, 1: 5.0, 2: 4.0, 3: 4.5, 4: 3.95, 5: 4.2, 6: 3.0, 7: 3.1, 8: 3.2}
EVERY = ["eval.every=1", "checkpoint.keep=1"]
BEST = 'train.result="best"'


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One whose evaluations give the losses above."""
    measured = Evaluator.evaluate

    def evaluate(self: Evaluator, step: int, *given: Any) -> EvalReport:
        return replace(measured(self, step, *given), loss=LOSSES[step])

    monkeypatch.setattr(Evaluator, "evaluate", evaluate)
    return write_resumed(tmp_path / "recipe")


def _record(run: Path) -> Mapping[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text(encoding="utf-8"))
    return {key: found[key] for key in ("state", "steps_made", "early", "saved")}


def _weights(directory: Path) -> bytes:
    return (directory / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("settings", "steps", "best"),
    [
        (["eval.patience=1"], 3, 2),
        (["eval.patience=2"], STEPS, 6),
        (["eval.patience=2", "eval.min_delta=0.1"], 4, 4),  # 3.95 is the best, but not by 0.1
        (["eval.patience=3", "eval.min_delta=0.1"], 5, 4),
        ([], STEPS, 6),
    ],
)
@pytest.mark.parametrize("result", ["best", "last"])
def test_when_it_ends_and_with_what(
    recipe: Path, tmp_path: Path, settings: list[str], steps: int, best: int, result: str
) -> None:
    run = go(recipe, *EVERY, *settings, f'train.result="{result}"', out=tmp_path / "run").directory
    saved = best if result == "best" else steps
    assert _record(run) == {"state": "done", "steps_made": steps, "early": steps < STEPS, "saved": saved}
    assert [line["step"] for line in metrics(run)] == list(range(1, steps + 1))
    assert _weights(run / "adapter") == _weights(run / "checkpoints" / f"step-{saved}" / "adapter")
    assert json.loads((run / "adapter" / "manifest.json").read_text())["step"] == saved
    kinds = {line["kind"]: line["what"] for line in metrics(run, "notice")}
    assert ("ended early" in kinds) == (steps < STEPS)
    assert ("best" in kinds) == (saved != steps)
    told = "\n".join(lines(tell(run)))
    assert ("early: evaluations were no better" in told) == (steps < STEPS)
    assert (f"what was trained in {best} steps" in told) == (saved != steps)
    card = (run / "adapter" / "README.md").read_text(encoding="utf-8")
    assert (f"was trained in {best} of them" in card) == (saved != steps)
    assert f"{LOSSES[saved]:.4f} (step {saved})" in card


def test_one_that_was_stopped_ends_as_one_that_was_not(recipe: Path, tmp_path: Path) -> None:
    how = [*EVERY, "eval.patience=3", "eval.min_delta=0.1", BEST]
    whole = go(recipe, *how, out=tmp_path / "whole").directory
    stop(recipe, tmp_path / "stopped", 4, *how)
    stopped = go(tmp_path / "stopped").directory
    assert curve(stopped) == curve(whole)
    assert _record(stopped) == _record(whole) == {"state": "done", "steps_made": 5, "early": True, "saved": 4}
    assert _weights(stopped / "adapter") == _weights(whole / "adapter")


def test_one_that_ended_early_is_done(recipe: Path, tmp_path: Path) -> None:
    run = go(recipe, *EVERY, "eval.patience=1", BEST, out=tmp_path / "run").directory
    assert go(run).done
    kept = _weights(run / "adapter")
    shutil.rmtree(run / "adapter")  # as if it was killed before it could save
    assert not go(run).done
    assert _weights(run / "adapter") == kept
    assert _record(run) == {"state": "done", "steps_made": 3, "early": True, "saved": 2}
    assert len(metrics(run)) == 3
    go(run, "eval.patience=2", allowed=["eval.patience"])
    assert _record(run) == {"state": "done", "steps_made": STEPS, "early": False, "saved": 6}


def test_the_best_by_what_the_objective_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its margin, the highest, whatever losses say."""
    margins = {0: 9.0, 1: 0.5, 2: 0.75, 3: 0.25, 4: 0.5}
    measured = Evaluator.evaluate

    def evaluate(self: Evaluator, step: int, *given: Any) -> EvalReport:
        report = measured(self, step, *given)
        return replace(report, loss=float(step), metrics={**report.metrics, "margin": margins[step]})

    monkeypatch.setattr(Evaluator, "evaluate", evaluate)
    recipe = write_preference_recipe(tmp_path)
    how = [*EVERY, 'objective={use="simpo"}', 'eval.best_by="margin"', "eval.patience=2", BEST]
    run = go(recipe, *how, out=tmp_path / "run").directory
    assert _record(run) == {"state": "done", "steps_made": 4, "early": False, "saved": 2}
    best = json.loads((run / "run.json").read_text())["best"]
    assert (best["step"], best["measure"], best["loss"]) == (2, 0.75, 2.0)
    assert _weights(run / "adapter") == _weights(run / "checkpoints" / "step-2" / "adapter")


@pytest.mark.parametrize(
    ("by", "better"), [("", "exact_match"), ("exact_match", "exact_match"), ("loss", "loss"), ("x", "measure")]
)
def test_what_an_evaluation_is_judged_by(by: str, better: str) -> None:
    worse = {"loss": 2.0, "exact_match": 0.25, "measure": 0.25}
    best = HeldOut(step=1, **worse)
    for name, value in {"loss": 1.0, "exact_match": 0.5, "measure": 0.5}.items():
        found = HeldOut(step=2, **{**worse, name: value})
        assert found.beats(best, by) == (name == better)
        assert not best.beats(found, by)
        assert not replace(found, step=0).beats(best, by)
    assert HeldOut(step=2, loss=1.0).beats(best)
    assert not HeldOut(step=2, loss=3.0).beats(best)


def test_processes_end_together(tmp_path: Path, forks: Forks) -> None:
    """With nothing that could count as better than the first evaluation."""
    recipe = write_resumed(tmp_path / "recipe")
    settings = [*EVERY, "eval.patience=2", "eval.min_delta=100", BEST, "memory.strategy=[]"]
    sets = [word for one in settings for word in ("--set", one)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    given: list[str | Path] = ["run", recipe, "--out", tmp_path / "run", *sets]
    children = [forks.start(given, cwd=tmp_path, prepare=join, rank=rank, processes=2, port=port) for rank in range(2)]
    ended = [forks.wait(child) for child in children]
    assert [one.code for one in ended] == [0, 0], ended[0].output
    record = _record(tmp_path / "run")
    assert (record["state"], record["steps_made"], record["early"]) == ("done", 3, True)


def test_a_best_that_is_damaged_is_told(recipe: Path, tmp_path: Path) -> None:
    run = go(recipe, *EVERY, BEST, out=tmp_path / "run").directory
    shutil.rmtree(run / "adapter")
    file = run / "checkpoints" / "step-6" / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    go(run)
    (said,) = (line["what"] for line in metrics(run, "notice") if line["kind"] == "not the best")
    assert "step-6, cannot be used: adapter/adapter_model.safetensors has" in said
    assert _weights(run / "adapter") == _weights(run / "checkpoints" / "step-8" / "adapter")


def test_the_console_says_it(recipe: Path, tmp_path: Path) -> None:
    sets = [word for one in [*EVERY, "eval.patience=1", BEST] for word in ("--set", one)]
    out, err = ft("run", recipe, "--out", tmp_path / "run", *sets)
    assert "the last evaluation was not better than the one after step 2 ([eval] patience)" in out + err
    assert "training ends after 3 of 8 steps" in out + err
    assert "what is saved is that of step 2, of the best evaluation, and not of the last step, 3" in out + err


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["eval.patience=2"], '"patience" has no effect where only the last step is evaluated'),
        ([BEST], '"result" = "best" has no effect where only the last step is evaluated'),
        (["eval.every=1", "eval.min_delta=0.1"], '"min_delta" has no effect without "patience"'),
        (['eval.best_by="accuracy"'], 'is "accuracy", which the objective "sft" does not measure'),
        (['eval.best_by="exact_match"'], "which exact_match = false does not measure"),
        (
            ["eval.every=1", BEST, "checkpoint.best=false"],
            "from the checkpoint that .checkpoint. best = false does not",
        ),
    ],
)
def test_what_has_no_effect_is_refused(tmp_path: Path, settings: list[str], said: str) -> None:
    path = write_resumed(tmp_path)
    path.write_text(path.read_text(encoding="utf-8").replace("every = 3\n", ""), encoding="utf-8")
    with pytest.raises(RecipeError, match=said):
        read_recipe(path, open_registry(), settings)


def test_without_held_out_data(recipe_path: Path) -> None:
    with pytest.raises(RecipeError, match='"result" = "best" has no effect without held-out data'):
        read_recipe(recipe_path, open_registry(), [BEST])
