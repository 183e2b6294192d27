"""A run that runs out of memory goes on with less, from the step that failed, as if nothing had been."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from fitune import OptimizerSettings, RunError
from fitune.checkpoint.files import newest
from fitune.cli.console import RunConsole
from fitune.compose import loss_scaling
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry, write_recipe, write_tiny_data
from fitune.train import run as run_module
from fitune.train.out_of_memory import said_by
from support import running_out
from support.resuming import curve
from support.running_out import MESSAGE, TRAP, Traps, checkpointed, run_trapped
from support.states import assert_same
from support.tiny import losses, metrics
from support.tiny import train as train_run


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The tiny recipe with dropout, accumulation, held-out data and the trap; a step passes the model twice."""
    path = write_recipe(
        tmp_path / "recipe",
        {
            "adapter": {"use": "lora", "dropout": 0.3},
            "memory": {"strategy": [TRAP, {"use": "accumulation", "steps": 2}]},
            "eval": {"every": 2, "source": [{"use": "jsonl", "path": "held_out.jsonl"}]},
            "train": {"steps": 5, "warmup_steps": 2, "micro_batch": 1},
        },
    )
    write_tiny_data(path.parent / "held_out.jsonl", rows=3)
    return path


def _assert_equal_runs(found: Path, expected: Path) -> None:
    assert curve(found) == curve(expected)
    assert_same(_saved(found), _saved(expected))


def _saved(directory: Path) -> list[torch.Tensor]:
    (file,) = (file for file in directory.rglob("*.safetensors") if "checkpoints" not in file.parts)
    return list(load_file(file).values())


def _adamw(parameters: Any, settings: OptimizerSettings) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=settings.learning_rate)


POINTS = {
    "the first forward pass": ([("forward", 1)], 0, "step"),
    "in mid-epoch": ([("forward", 6)], 2, "step"),
    "in the second epoch": ([("forward", 9)], 4, "step"),
    "a backward pass": ([("backward", 4)], 1, "step"),
    "the first evaluation": ([("evaluation", 2)], 0, "evaluation"),
    "a later evaluation": ([("evaluation", 5)], 2, "evaluation"),
    "the last evaluation": ([("evaluation", 10)], 5, "evaluation"),
    "before the optimizer": ([("before the optimizer", 3)], 2, "step"),
}


@pytest.mark.parametrize("point", POINTS)
def test_a_run_goes_on_as_if_nothing_had_been(recipe: Path, tmp_path: Path, point: str) -> None:
    points, steps, phase = POINTS[point]
    run_trapped(recipe, tmp_path / "plain", Traps(optimizer=_adamw))
    traps = Traps(*points, optimizer=_adamw)
    run_trapped(recipe, tmp_path / "run", traps)
    (recovery,) = traps.recoveries
    assert (recovery.step, recovery.phase) == (steps, phase)
    assert recovery.error == MESSAGE
    assert recovery.after[:-1] == recovery.before
    assert checkpointed(recovery) == 1
    _assert_equal_runs(tmp_path / "run", tmp_path / "plain")
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        "adapter", "checkpoints", "environment.json", "error.txt", "identity.json", "metrics.jsonl", "recipe.toml",
        "run.json",
    }  # fmt: skip
    assert read_recipe(tmp_path / "run" / "recipe.toml", open_registry(Traps())).strategies[-1].options.layers == 1
    (line,) = metrics(tmp_path / "run", "recovery")
    assert (line["step"], line["after"]) == (steps, list(recovery.after))


VARIANTS = {
    "full": ['adapter={use="none"}'],
    "8 bits": ['memory.strategy=[{use="trap"}, {use="adamw-8bit"}]', 'adapter={use="none"}'],
    "float16": ['model.dtype="float16"', "adapter.dropout=0.0"],
    "bfloat16": ['model.dtype="bfloat16"', "adapter.dropout=0.0"],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_twice_and_in_other_types(recipe: Path, tmp_path: Path, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scaling, "INITIAL_SCALE", 2.0**20)  # some of the steps are skipped
    run_trapped(recipe, tmp_path / "plain", Traps(), *VARIANTS[variant])
    traps = Traps(("forward", 3), ("backward", 4))
    assert run_trapped(recipe, tmp_path / "run", traps, *VARIANTS[variant]).calls == 2
    assert [checkpointed(recovery) for recovery in traps.recoveries] == [1, 2]
    _assert_equal_runs(tmp_path / "run", tmp_path / "plain")


def test_optimizer_state_that_was_only_made_is_dropped(recipe: Path, tmp_path: Path) -> None:
    """As torch's AdamW does: it makes the state of all parameters, and runs out before it changes one."""

    class Short(torch.optim.AdamW):
        def _init_group(self, *arguments: Any) -> Any:
            found = super()._init_group(*arguments)  # type: ignore[no-untyped-call]
            traps.spring("state")
            return found

    def make(parameters: Any, settings: OptimizerSettings) -> torch.optim.Optimizer:
        Short.__module__ = "torch.optim.adamw"
        return Short(parameters, lr=settings.learning_rate)

    traps = Traps(optimizer=make)
    run_trapped(recipe, tmp_path / "plain", traps)
    traps = Traps(("state", 1), optimizer=make)
    run_trapped(recipe, tmp_path / "run", traps)
    assert [recovery.step for recovery in traps.recoveries] == [0]
    _assert_equal_runs(tmp_path / "run", tmp_path / "plain")


def _ended(recipe: Path, directory: Path, traps: Traps, *overrides: str) -> RunError:
    with pytest.raises(RunError) as raised:
        run_trapped(recipe, directory, traps, *overrides)
    assert raised.value.exit_code == 2
    return raised.value


def test_a_step_that_changed_weights_cannot_be_undone(recipe: Path, tmp_path: Path) -> None:
    traps = Traps(("after the optimizer", 3), optimizer=_adamw)
    error = _ended(recipe, tmp_path / "run", traps)
    saved = tmp_path / "run" / "adapter.unfinished"
    assert "out of GPU memory in step 3" in error.message
    assert "The optimizer had begun to change weights, which cannot be undone" in error.message
    assert f"checkpoint is that of step 2. What trains, in the midst of step 3, is in {saved}" in error.message
    assert (saved / "adapter_model.safetensors").is_file()
    assert traps.recoveries == []


def test_an_optimizer_that_leaves_no_trace_is_not_trusted(recipe: Path, tmp_path: Path) -> None:
    class Unknown(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            super().step(closure)

    traps = Traps(("before the optimizer", 2), optimizer=lambda p, settings: Unknown(p, lr=0.1))
    assert "cannot be undone" in _ended(recipe, tmp_path / "run", traps).message


def test_it_ends_once_nothing_takes_less(recipe: Path, tmp_path: Path) -> None:
    """The third time, refit has nothing more; what was trained is there."""
    traps = Traps(("forward", 3), ("forward", 6), ("forward", 9))
    error = _ended(recipe, tmp_path / "run", traps)
    assert "Nothing takes less. What was trained in " in error.message
    assert len(traps.recoveries) == 2
    checkpoint, damaged = newest(tmp_path / "run")
    assert checkpoint is not None
    assert not damaged
    assert f"is saved in {checkpoint.directory}. Go on with: ft run {tmp_path / 'run'}" in error.message
    assert not (tmp_path / "run" / "adapter").exists()
    assert MESSAGE in (tmp_path / "run" / "error.txt").read_text(encoding="utf-8")
    assert error.lines[1].startswith("torch asked for 172.00 MiB")  # as ft explain-oom says


def test_it_goes_on_as_often_as_the_recipe_says(recipe: Path, tmp_path: Path) -> None:
    traps = Traps(("forward", 3), ("forward", 6))
    error = _ended(recipe, tmp_path / "run", traps, "memory.recoveries=1")
    assert "It went on 1 times ([memory] recoveries)" in error.message
    assert len(traps.recoveries) == 1
    # What is saved is what an undisturbed run has after as many steps.
    steps = len(metrics(tmp_path / "run"))
    assert f"in {steps} steps" in error.message
    assert losses(tmp_path / "run") == losses(_plain(recipe, tmp_path / "plain"))[:steps]


def _plain(recipe: Path, directory: Path) -> Path:
    run_trapped(recipe, directory, Traps())
    return directory


def test_without_recoveries_it_ends_as_before(recipe: Path, tmp_path: Path) -> None:
    error = _ended(recipe, tmp_path / "run", Traps(("forward", 3)), "memory.recoveries=0")
    assert error.message.startswith("out of GPU memory in training: CUDA out of memory. Tried to allocate 172.00 MiB.")
    assert not (tmp_path / "run" / "adapter").exists()


def test_memory_that_runs_out_before_the_first_step_is_no_run_to_save(recipe: Path, tmp_path: Path) -> None:
    traps = Traps(("forward", 1), ("forward", 2), ("forward", 3))
    error = _ended(recipe, tmp_path / "run", traps, "eval.before=false")
    assert "Nothing is saved" in error.message
    assert not (tmp_path / "run" / "adapter").exists()


def test_loading_again_may_run_out_too(recipe: Path, tmp_path: Path) -> None:
    """That counts as another attempt, and the state of before is not lost by it."""
    traps = Traps(("forward", 5), ("load", 2))
    assert run_trapped(recipe, tmp_path / "run", traps).calls == 2
    (recovery,) = traps.recoveries
    assert checkpointed(recovery) == 2
    _assert_equal_runs(tmp_path / "run", _plain(recipe, tmp_path / "plain"))


def test_the_first_load_ends_as_before(recipe: Path, tmp_path: Path) -> None:
    error = _ended(recipe, tmp_path / "run", Traps(("load", 1)))
    assert "out of GPU memory while loading" in error.message


def test_a_rehearsal_may_run_out(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _plain(recipe, tmp_path / "plain")
    monkeypatch.setattr(run_module, "on_gpu", lambda parts: True)
    traps = Traps(("backward", 2))
    run_trapped(recipe, tmp_path / "run", traps)
    (recovery,) = traps.recoveries
    assert (recovery.step, recovery.phase) == (0, "rehearsal")
    assert len(metrics(tmp_path / "run", "rehearsal")) == 1
    _assert_equal_runs(tmp_path / "run", expected)


def test_the_console_says_so(recipe: Path, tmp_path: Path) -> None:
    file = io.StringIO()
    run_trapped(recipe, tmp_path / "run", Traps(("forward", 5)), plugins=[RunConsole(Console(file=file, width=200))])
    said = file.getvalue()
    assert "out of GPU memory in the step after 2 steps: CUDA out of memory. Tried to allocate 172.00 MiB.\n" in said
    assert 'goes on  {use = "trap"}, {use = "accumulation", steps = 2}, {use = "gradient-checkpointing"' in said


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "CUDA out of memory. Tried to"),
        (torch.OutOfMemoryError(""), "out of memory"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), "CUDA error: out of memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "CUDA error: CUB"),
        (RuntimeError("Error out of memory at line 380 in file /src/csrc/ops.cu"), "Error out of memory"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (MemoryError("out of memory"), None),  # of the host
        (ValueError("CUDA out of memory"), None),
    ],
)
def test_what_is_out_of_memory(error: Exception, found: str | None) -> None:
    for raised in (error, _caused(error)):
        said = said_by(raised)
        assert said is None if found is None else said is not None and said.startswith(found)


def _caused(error: Exception) -> Exception:
    outer = RunError("a plugin failed")
    outer.__cause__ = error
    return outer


def test_other_errors_are_not_taken_for_it(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(running_out, "fail", fail)
    with pytest.raises(ZeroDivisionError):
        run_trapped(recipe, tmp_path / "run", Traps(("forward", 5)))
    assert not (tmp_path / "run" / "adapter").exists()


def test_no_refitter_is_needed_where_nothing_runs_out(recipe: Path, tmp_path: Path) -> None:
    train_run(recipe, tmp_path / "run", plugins=[Traps()])
    assert losses(tmp_path / "run") == losses(_plain(recipe, tmp_path / "plain"))
