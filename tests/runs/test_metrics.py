"""What a run's events leave behind: metrics.jsonl, examples.json, an experiment tracker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from fitune import hookimpl
from fitune.testing import write_recipe, write_tiny_data
from support.scalars import scalars
from support.tiny import metrics, train

STEP_KEYS = {
    "event", "step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "target_tokens", "tokens_per_second",
    "seconds", "host_memory_peak",
}  # fmt: skip


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The tiny recipe, evaluated before and after, with five steps."""
    source = {"source": [{"use": "jsonl", "path": "held_out.jsonl"}]}
    path = write_recipe(tmp_path / "recipe", {"eval": source, "train": {"steps": 5}})
    write_tiny_data(path.parent / "held_out.jsonl", rows=2)
    return path


def _lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_lines_and_keys(recipe: Path, tmp_path: Path) -> None:
    train(recipe, tmp_path / "run", "eval.every=2")
    lines = _lines(tmp_path / "run")
    assert [(line["event"], line["step"]) for line in lines] == [
        ("evaluation", 0), ("step", 1), ("step", 2), ("evaluation", 2), ("checkpoint", 2), ("step", 3), ("step", 4),
        ("evaluation", 4), ("checkpoint", 4), ("step", 5), ("evaluation", 5), ("checkpoint", 5),
    ]  # fmt: skip
    step = metrics(tmp_path / "run")[0]
    assert step.keys() == STEP_KEYS
    assert step["tokens_per_second"] == pytest.approx(step["tokens"] / step["seconds"])
    assert 0 < step["target_tokens"] < step["tokens"]
    assert step["epoch"] == pytest.approx(2 / 12, abs=1e-4)
    assert step["host_memory_peak"] > 50 * 2**20  # bytes: torch alone takes more
    evaluation = metrics(tmp_path / "run", "evaluation")[0]
    assert evaluation.keys() == {"event", "step", "loss", "rows", "target_tokens", "seconds"}
    assert evaluation["rows"] == 2
    assert not (tmp_path / "run" / "examples.json").exists()  # nothing was generated


@pytest.mark.parametrize(("every", "steps"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (9, [5])])
def test_log_every_keeps_the_last_step(recipe: Path, tmp_path: Path, every: int, steps: list[int]) -> None:
    train(recipe, tmp_path / "run", f'listener=[{{use="metrics", every={every}}}]')
    assert [line["step"] for line in metrics(tmp_path / "run")] == steps
    assert [line["step"] for line in metrics(tmp_path / "run", "evaluation")] == [0, 5]


def test_examples_are_those_of_the_last_evaluation(recipe: Path, tmp_path: Path) -> None:
    train(recipe, tmp_path / "run", "eval.exact_match=true", "eval.max_new_tokens=3")
    examples = json.loads((tmp_path / "run" / "examples.json").read_text(encoding="utf-8"))
    assert examples["step"] == 5
    assert [a["expected"] for a in examples["answers"]] == ["1", "1 2"]
    assert all(a.keys() == {"prompt", "expected", "generated", "cut"} for a in examples["answers"])
    assert metrics(tmp_path / "run", "evaluation")[-1]["exact_match"] in (0.0, 0.5, 1.0)


@pytest.mark.parametrize(("every", "steps"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5])])
def test_tensorboard(recipe: Path, tmp_path: Path, every: int, steps: list[int]) -> None:
    listeners = f'{{use="metrics", every={every}}}, {{use="tracker", name="tensorboard", every={every}}}'
    train(recipe, tmp_path / "run", f"listener=[{listeners}]")
    found = scalars(tmp_path / "run")
    written = {line["step"]: line["loss"] for line in metrics(tmp_path / "run")}
    assert [step for step, _ in found["train/loss"]] == steps
    assert [value for _, value in found["train/loss"]] == pytest.approx([written[step] for step in steps], rel=1e-6)
    evaluated = [line["loss"] for line in metrics(tmp_path / "run", "evaluation")]
    assert [step for step, _ in found["eval/loss"]] == [0, 5]
    assert [value for _, value in found["eval/loss"]] == pytest.approx(evaluated, rel=1e-6)


def test_no_tracker_unless_asked_for(recipe: Path, tmp_path: Path) -> None:
    train(recipe, tmp_path / "run")
    assert list((tmp_path / "run").rglob("events.*")) == []


class Fails:
    """A plugin that fails at the first step."""

    @hookimpl
    def ft_step_done(self) -> None:
        """Fail."""
        raise ZeroDivisionError


def test_trackers_are_closed_when_a_run_fails(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []
    monkeypatch.setattr(Accelerator, "end_training", lambda self: closed.append(self.trackers[0].name))
    with pytest.raises(Exception, match="ZeroDivisionError"):
        train(recipe, tmp_path / "run", 'listener=[{use="tracker", name="tensorboard"}]', plugins=[Fails()])
    assert closed == ["tensorboard"]
