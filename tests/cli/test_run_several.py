"""`ft run --gpus` and `--processes`: the whole way, from a command to what several processes have trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fitune.testing import write_recipe, write_tiny_data
from support.commands import Capture, refused
from support.tiny import losses, train


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe", {"train": {"micro_batch": 1, "steps": 2, "epsilon": 1e-4}})
    write_tiny_data(recipe.parent / "data.jsonl", rows=5)
    train(recipe, tmp_path / "one", 'memory.strategy=[{use="accumulation", steps=2}]')
    given = ["run", str(recipe), "--out", str(tmp_path / "two"), "--processes", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "fitune", *given], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "x 2 process(es)" in done.stdout
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert json.loads((tmp_path / "two" / "identity.json").read_text(encoding="utf-8"))["processes"] == 2


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="a GPU is here")
def test_gpus_that_are_not_here(recipe_path: Path, capsys: Capture) -> None:
    assert "--gpus 2, but no GPU is here" in refused("run", str(recipe_path), "--gpus", "2", capsys=capsys)


def test_two_ways_to_say_how_many(recipe_path: Path, capsys: Capture) -> None:
    said = refused("run", str(recipe_path), "--gpus", "2", "--processes", "2", capsys=capsys)
    assert "Give one of them" in said


def test_one_that_was_launched_starts_no_others(
    recipe_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "launched already" in refused("run", str(recipe_path), "--processes", "2", capsys=capsys)


def test_a_wrong_recipe_is_told_of_once(recipe_path: Path, capsys: Capture) -> None:
    said = refused("run", str(recipe_path), "--processes", "2", "--set", "train.steps=-1", capsys=capsys)
    assert said.count('"steps" is -1') == 1


BLOW = '''
"""Has the second process send a signal in its second step: to itself, or to the one that has started it."""
import os
import signal

from fitune import MemoryStrategy, NoOptions, Strategy, hookimpl


class Blow(Strategy):
    steps = 0

    def around_step(self):
        self.steps += 1
        if os.environ["RANK"] == "1" and self.steps == 2:
            os.kill({whom}, signal.{name})
        return super().around_step()


@hookimpl
def ft_memory_strategies():
    yield MemoryStrategy(name="blow", summary="Signals", options=NoOptions, make=lambda options: Blow())
'''


@pytest.mark.parametrize(
    ("whom", "name", "code", "says"),
    [
        ("os.getpid()", "SIGKILL", 2, "error: process 1 of the run was ended by SIGKILL"),
        ("os.getppid()", "SIGTERM", 3, "error: stopped after 2 of 4 steps: SIGTERM"),
    ],
)
def test_all_end_together(tmp_path: Path, whom: str, name: str, code: int, says: str) -> None:
    """With one error, and no traceback of those that have lost another."""
    recipe = write_recipe(tmp_path / "recipe", {"train": {"micro_batch": 1, "steps": 4}})
    (tmp_path / "blow.py").write_text(BLOW.format(whom=whom, name=name), encoding="utf-8")
    sets = [f'plugins=["{tmp_path / "blow.py"}"]', 'memory.strategy=[{use="blow"}, {use="fsdp"}]']
    given = ["run", str(recipe), "--out", str(tmp_path / "run"), "--processes", "2"]
    more = [part for one in sets for part in ("--set", one)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FT_ALLOW_PLUGINS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "fitune", *given, *more], capture_output=True, text=True, env=environment
    )
    assert done.returncode == code, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith(says)
    assert "Traceback" not in done.stderr
    assert (tmp_path / "run" / "checkpoints" / "step-2").is_dir() == (code == 3)
