"""A rehearsal finds what would end a run later, and leaves nothing behind: the run is the same to the bit."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from fitune import Adapter, Batch, NoOptions, PluginError, RehearsalReport, RunError, hookimpl
from fitune.checkpoint.module_state import changed, module_state
from fitune.checkpoint.state import capture, random_state
from fitune.compose.evaluate import Evaluator
from fitune.compose.parts import Parts
from fitune.plugin.events import EvalReport, StepReport
from fitune.testing import write_recipe, write_tiny_data
from fitune.train import rehearsal as rehearsal_module
from fitune.train import run as run_module
from fitune.train.loop import train
from fitune.train.rehearsal import rehearse
from support.states import CASES, assert_same, values_of
from support.tiny import adapter, losses, metrics, parts_of
from support.tiny import train as train_run

HELD_OUT = ["eval.exact_match=true", "eval.max_new_tokens=4", "eval.every=2"]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The tiny recipe with held-out data."""
    path = write_recipe(tmp_path / "recipe", {"eval": {"source": [{"use": "jsonl", "path": "held_out.jsonl"}]}})
    write_tiny_data(path.parent / "held_out.jsonl", rows=7)
    return path


def _rehearsed(parts: Parts) -> RehearsalReport:
    parts.run.directory.mkdir(exist_ok=True)
    return rehearse(parts, capture(parts, 0, module_state(parts.run.model)))


def _curve(parts: Parts) -> list[object]:
    """What every step and evaluation says, times and memory aside."""
    reports = [dataclasses.asdict(report) for report in train(parts)]
    return [{key: value for key, value in report.items() if key not in ("seconds", "memory")} for report in reports]


REHEARSED = {
    **CASES,
    "checkpointing": ["adapter.dropout=0.3", 'memory.strategy=[{use="gradient-checkpointing"}]'],
    "chunked loss": ['memory.strategy=[{use="chunked-loss", tokens=5}]'],
}


@pytest.mark.parametrize("case", REHEARSED)
def test_the_run_is_the_same_to_the_bit(recipe: Path, case: str) -> None:
    overrides = [*HELD_OUT, *REHEARSED[case]]
    plain, parts = parts_of(recipe, *overrides), parts_of(recipe, *overrides)
    before, modules = values_of(parts), module_state(parts.run.model)
    report = _rehearsed(parts)
    assert_same(values_of(parts), before)
    now = changed(modules, module_state(parts.run.model))
    assert (dict(now.values), dict(now.buffers)) == ({}, {})
    assert all(p.grad is None for p in (*parts.step.trainables.masters, *parts.step.trainables.parameters))
    assert report.evaluated
    assert not list(parts.run.directory.iterdir())
    torch.manual_seed(1)  # each run by itself: the generators are one for both
    expected = _curve(plain)
    torch.manual_seed(1)
    assert _curve(parts) == expected
    assert_same(values_of(parts), values_of(plain))


def test_generators_stand_where_they_stood(recipe: Path) -> None:
    parts = parts_of(recipe, "adapter.dropout=0.3")
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(3)
    before = random_state(torch.device("cpu"))
    _rehearsed(parts)
    after = random_state(torch.device("cpu"))
    assert after.python == before.python
    assert str(after.numpy) == str(before.numpy)
    assert torch.equal(after.torch, before.torch)


def test_the_longest_rows_go_through_everything(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = parts_of(recipe, *HELD_OUT, 'memory.strategy=[{use="accumulation", steps=3}]', "eval.micro_batch=2")
    seen: list[tuple[int, int, bool, bool]] = []
    loss = parts.step.loss

    def watched(model: Any, batch: Batch) -> torch.Tensor:
        seen.append((*batch.input_ids.shape, model.training, torch.is_grad_enabled()))
        return loss(model, batch)

    prompts: list[tuple[int, ...]] = []
    generate = cast(Any, parts.run.model).generate

    def told(**arguments: Any) -> torch.Tensor:
        out: torch.Tensor = generate(**arguments)
        prompts.append((*arguments["input_ids"].shape, out.shape[1] - arguments["input_ids"].shape[1]))
        return out

    parts.step.computation.loss = watched
    assert parts.evaluator is not None
    parts.evaluator.objective.scores.token_loss = watched
    monkeypatch.setattr(parts.run.model, "generate", told)
    report = _rehearsed(parts)
    longest = max(len(example.input_ids) for example in parts.examples)
    held_out = max(len(example.input_ids) for example in parts.evaluator.examples)
    assert seen == [(2, longest, True, True)] * 3 + [(2, held_out, False, False)]
    assert [(rows, new) for rows, _, new in prompts] == [(2, 4)]  # to the end, whatever the model says
    assert (report.rows, report.tokens) == (2, longest)
    assert report.memory.peak > 0


def test_without_held_out_rows_nothing_is_evaluated(recipe_path: Path) -> None:
    assert not _rehearsed(parts_of(recipe_path)).evaluated


def no_room(model: PreTrainedModel, directory: Path) -> None:
    """Write a half."""
    (directory / "half").write_text("half", encoding="utf-8")
    raise OSError(28, "No space left on device")


def nothing(model: PreTrainedModel, directory: Path) -> None:
    """Write nothing."""


def failing(model: PreTrainedModel, directory: Path) -> None:
    """Raise what is nobody's to understand."""
    raise ZeroDivisionError


class BrokenSave:
    """A plugin: adapter `broken`, which cannot be saved."""

    def __init__(self, save: Callable[[PreTrainedModel, Path], None] = no_room) -> None:
        self.save = save

    @hookimpl
    def ft_adapters(self) -> Iterable[Adapter[NoOptions]]:
        """Offer it."""
        yield Adapter(name="broken", summary="Fails", options=NoOptions, attach=lambda o, model: model, save=self.save)


class Told:
    """A plugin that keeps the names of events."""

    def __init__(self) -> None:
        self.events: list[str] = []

    @hookimpl
    def ft_run_started(self) -> None:
        """Keep it."""
        self.events.append("started")

    @hookimpl
    def ft_rehearsed(self, report: RehearsalReport) -> None:
        """Keep it."""
        self.events.append("rehearsed")

    @hookimpl
    def ft_step_done(self, step: StepReport) -> None:
        """Keep it."""
        self.events.append(f"step {step.step}")

    @hookimpl
    def ft_evaluated(self, report: EvalReport) -> None:
        """Keep it."""
        self.events.append(f"evaluated {report.step}")

    @hookimpl
    def ft_saved(self) -> None:
        """Keep it."""
        self.events.append("saved")


@pytest.fixture
def on_any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are rehearsed here as they are on a GPU."""
    monkeypatch.setattr(run_module, "on_gpu", lambda parts: True)


@pytest.mark.parametrize("gpu", [True, False])
def test_a_disk_without_room_is_found_before_the_first_step(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool
) -> None:
    monkeypatch.setattr(run_module, "on_gpu", lambda parts: gpu)
    told = Told()
    with pytest.raises(RunError, match=r"cannot be saved in .*run: No space left on device.*Make room"):
        train_run(recipe, tmp_path / "run", 'adapter={use="broken"}', plugins=[BrokenSave(), told])
    assert told.events == ["started"]
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        "environment.json", "identity.json", "metrics.jsonl", "recipe.toml", "run.json",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("save", "what"), [(nothing, "save wrote no safetensors"), (failing, "save failed: ZeroDivisionError")]
)
def test_an_adapter_that_does_not_save_is_found_before_the_first_step(
    recipe: Path, tmp_path: Path, save: Callable[[PreTrainedModel, Path], None], what: str
) -> None:
    told = Told()
    with pytest.raises(PluginError, match=rf'^adapter "broken": {what}.*This was tried before any more is trained'):
        train_run(recipe, tmp_path / "run", 'adapter={use="broken"}', plugins=[BrokenSave(save), told])
    assert told.events == ["started"]


def test_nothing_is_saved_before_the_first_step_where_a_recipe_says_so(recipe: Path, tmp_path: Path) -> None:
    told = Told()
    with pytest.raises(RunError, match="could not be written: No space left on device"):
        train_run(recipe, tmp_path / "run", 'adapter={use="broken"}', "memory.rehearse=false",
                  plugins=[BrokenSave(), told])  # fmt: skip
    assert told.events[-1] == "evaluated 3"


def test_a_save_that_draws_random_numbers_changes_nothing(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr(rehearsal_module, "_save", lambda parts: drawn.append((torch.rand(3), random.random())))
    for name, *more in (("run",), ("without", "memory.rehearse=false")):
        train_run(recipe, tmp_path / name, "adapter.dropout=0.3", *more)
    assert len(drawn) == 1
    assert losses(tmp_path / "run") == losses(tmp_path / "without")


def test_an_evaluation_that_fails_is_found_before_the_first_step(
    recipe: Path, tmp_path: Path, on_any_device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Evaluator, "_generate", fail)
    told = Told()
    with pytest.raises(ZeroDivisionError):
        train_run(recipe, tmp_path / "run", *HELD_OUT, plugins=[told])
    assert told.events == ["started"]


def test_events_tell_of_the_run_alone(recipe: Path, tmp_path: Path, on_any_device: None) -> None:
    told = Told()
    train_run(recipe, tmp_path / "run", "adapter.dropout=0.3", plugins=[told])
    assert told.events == [
        "started", "rehearsed", "evaluated 0", "step 1", "step 2", "step 3", "evaluated 3", "saved",
    ]  # fmt: skip
    (line,) = metrics(tmp_path / "run", "rehearsal")
    assert line["rows"] == 2
    assert line["host_memory_peak"] > 0
    train_run(recipe, tmp_path / "without", "adapter.dropout=0.3", "memory.rehearse=false")
    assert metrics(tmp_path / "without", "rehearsal") == []
    assert losses(tmp_path / "run") == losses(tmp_path / "without")
    assert_same(list(adapter(tmp_path / "run").values()), list(adapter(tmp_path / "without").values()))


def test_runs_without_a_gpu_are_not_rehearsed(recipe: Path, tmp_path: Path) -> None:
    told = Told()
    train_run(recipe, tmp_path / "run", plugins=[told])
    assert ("rehearsed" in told.events) is torch.cuda.is_available()
