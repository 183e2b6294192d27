"""Two processes under `accelerate launch` train exactly what one does with twice the accumulation."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from accelerate import Accelerator

from fitune import RunError
from fitune.testing import write_recipe, write_tiny_data
from support.blows import join
from support.forked import Ended, Forks
from support.tiny import adapter, assert_close, losses, metrics, parts_of, train


class Runs(NamedTuple):
    """The directories of both runs, and what the launched one printed: on standard output, and on standard error."""

    one: Path
    two: Path
    printed: str
    progress: str


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def _launch(recipe: Path, directory: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Under accelerate's own launcher, which takes seconds of every process to import what it needs."""
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"]
    how = ["--mixed_precision=no", "--dynamo_backend=no", f"--main_process_port={_free_port()}", "-m", "fitune"]
    what = ["run", str(recipe), "--out", str(directory), *(part for o in overrides for part in ("--set", o))]
    # --multi_gpu is accelerate's word for several local processes: with --cpu, it starts one. HF_HOME: no
    # configuration of this user's.
    variables = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HOME": str(recipe.parent)}
    return subprocess.run(
        [sys.executable, *launcher, *how, *what], capture_output=True, text=True, env=variables, timeout=240
    )


def _together(forks: Forks, cwd: Path, *given: str | Path) -> list[Ended]:
    """Two processes that join as launched ones do, to their end."""
    port = _free_port()
    children = [
        forks.start(["run", *given], cwd=cwd, prepare=join, rank=rank, processes=2, port=port) for rank in range(2)
    ]
    return [forks.wait(child) for child in children]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Five rows in windows of four: in each epoch's last window the second process has no micro-batch."""
    folder = tmp_path_factory.mktemp("processes")
    changes = {
        "train": {"micro_batch": 1, "steps": 4, "epochs": 2, "epsilon": 1e-4},
        "eval": {"every": 2, "exact_match": True, "max_new_tokens": 4, "micro_batch": 2},
    }
    recipe = write_recipe(folder / "recipe", changes)
    write_tiny_data(recipe.parent / "data.jsonl", rows=5)
    write_tiny_data(recipe.parent / "held_out.jsonl", rows=3)
    common = ('eval.source=[{use="jsonl", path="recipe/held_out.jsonl"}]',)
    here = Path.cwd()
    os.chdir(folder)
    try:
        train(recipe, folder / "one", 'memory.strategy=[{use="accumulation", steps=4}]', *common)
        done = _launch(recipe, folder / "two", 'memory.strategy=[{use="accumulation", steps=2}]', *common)
    finally:
        os.chdir(here)
    assert done.returncode == 0, done.stderr
    return Runs(one=folder / "one", two=folder / "two", printed=done.stdout, progress=done.stderr)


def test_losses_are_equal(runs: Runs) -> None:
    assert len(losses(runs.one)) == 4
    assert losses(runs.two) == pytest.approx(losses(runs.one), rel=1e-5)
    for key in ("tokens", "target_tokens", "epoch", "learning_rate"):
        assert [line[key] for line in metrics(runs.two)] == [line[key] for line in metrics(runs.one)]
    norms = [[line["grad_norm"] for line in metrics(run)] for run in (runs.one, runs.two)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


def test_adapters_are_equal(runs: Runs) -> None:
    one, two = adapter(runs.one), adapter(runs.two)
    assert one.keys() == two.keys()
    assert_close(two.values(), one.values(), relative=1e-4)


def test_evaluations_are_equal(runs: Runs) -> None:
    """Three held-out rows over two processes: one has a row more, and answers come back in the data's order."""
    one, two = metrics(runs.one, "evaluation"), metrics(runs.two, "evaluation")
    assert [line["step"] for line in two] == [0, 2, 4]
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=1e-5)
    assert [line["exact_match"] for line in two] == [line["exact_match"] for line in one]
    answers = [json.loads((run / "examples.json").read_text(encoding="utf-8")) for run in (runs.one, runs.two)]
    assert answers[0] == answers[1]
    assert [a["expected"] for a in answers[0]["answers"]] == ["1", "1 2", "1 2 3"]


def test_the_main_process_alone_prints_and_writes(runs: Runs) -> None:
    for once in ("step 1/4", "done in", "saved ", "held out after 0 steps"):
        assert sum(line.startswith(once) for line in runs.printed.splitlines()) == 1
    assert "x 2 process(es)" in runs.printed
    assert "Loading weights" not in runs.progress  # no library draws bars where nobody watches
    names = [{str(p.relative_to(run)) for p in run.rglob("*")} for run in (runs.one, runs.two)]
    generators = {f"checkpoints/step-{step}/process-1.json" for step in (2, 4)}
    of_command = {".lock"}  # which the first was not started by
    assert names[1] - names[0] == generators | of_command  # nothing else of a second writer, and no half file
    assert names[0] <= names[1]


SECOND = '''
"""Has the second process get a signal in its third step."""
import os
import signal

from fitune import MemoryStrategy, NoOptions, Strategy, hookimpl


class Signalled(Strategy):
    steps = 0

    def around_step(self):
        self.steps += 1
        if os.environ["RANK"] == "1" and self.steps == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().around_step()


@hookimpl
def ft_memory_strategies():
    yield MemoryStrategy(name="signalled", summary="Stops", options=NoOptions, make=lambda options: Signalled())
'''


def test_both_stop_and_go_on_together(runs: Runs, forks: Forks, tmp_path: Path) -> None:
    """With dropout, so that each process needs its own generators back."""
    (tmp_path / "second.py").write_text(SECOND, encoding="utf-8")
    given = (runs.two / "recipe.toml", "--set", "adapter.dropout=0.3", "--out")
    plain = _together(forks, tmp_path, *given, tmp_path / "plain")
    assert [one.code for one in plain] == [0, 0], plain
    strategies = 'memory.strategy=[{use="accumulation", steps=2}, {use="signalled"}]'
    second = f'plugins=["{tmp_path / "second.py"}"]'
    stopped = _together(forks, tmp_path, *given, tmp_path / "run", "--set", strategies, "--set", second)
    assert [one.code for one in stopped] == [3, 3], stopped
    assert "stopped after 3 of 4 steps: another process of the run was asked to stop" in stopped[0].output
    assert not (tmp_path / "run" / "adapter").exists()
    assert len(list((tmp_path / "run" / "checkpoints" / "step-3").glob("process-*.json"))) == 2
    # It goes on in two processes, and the second is not signalled again: it has one step to go.
    done = _together(forks, tmp_path, tmp_path / "run")
    assert [one.code for one in done] == [0, 0], done
    assert losses(tmp_path / "run") == losses(tmp_path / "plain")
    one, two = adapter(tmp_path / "run"), adapter(tmp_path / "plain")
    assert all(torch.equal(one[name], two[name]) for name in two)


EACH = '''
"""Has each process get its signals as terminals and launchers send them: both twice, or the second once it is told."""
import os
import signal

from fitune import MemoryStrategy, NoOptions, StopRequest, Strategy, hookimpl

RANK, HOW = os.environ["RANK"], "{how}"
ask = StopRequest.ask


def asked(self, reason):
    ask(self, reason)
    if HOW == "late" and reason.startswith("another process"):
        os.kill(os.getpid(), signal.SIGTERM)


StopRequest.ask = asked


class Signalled(Strategy):
    steps = 0

    def around_step(self):
        self.steps += 1
        if self.steps == 3 and (HOW == "twice" or RANK == "0"):
            for number in (signal.SIGINT, signal.SIGTERM) if HOW == "twice" else (signal.SIGTERM,):
                os.kill(os.getpid(), number)
        return super().around_step()


@hookimpl
def ft_memory_strategies():
    yield MemoryStrategy(name="signalled", summary="Stops", options=NoOptions, make=lambda options: Signalled())
'''


@pytest.mark.parametrize("how", ["twice", "late"])
def test_signals_of_a_terminal_and_a_launcher_are_one(runs: Runs, forks: Forks, tmp_path: Path, how: str) -> None:
    """Each process saves its part and ends with 3, whether its own signal comes again, or after it was told to stop."""
    (tmp_path / "each.py").write_text(EACH.replace("{how}", how), encoding="utf-8")
    strategies = 'memory.strategy=[{use="accumulation", steps=2}, {use="signalled"}]'
    given = (runs.two / "recipe.toml", "--set", strategies, "--set", f'plugins=["{tmp_path / "each.py"}"]')
    stopped = _together(forks, tmp_path, *given, "--out", tmp_path / "run")
    assert [one.code for one in stopped] == [3, 3], stopped
    assert len(list((tmp_path / "run" / "checkpoints" / "step-3").glob("process-*.json"))) == 2


EVERYWHERE = '''
"""Has a run rehearsed without a GPU, too."""
import fitune.train.run
from fitune import hookimpl

fitune.train.run.on_gpu = lambda parts: True

@hookimpl
def ft_rehearsed(run, report):
    print("rehearsed by", run.processes)
'''


def test_a_rehearsal_of_both_processes_changes_no_number(runs: Runs, forks: Forks, tmp_path: Path) -> None:
    (tmp_path / "everywhere.py").write_text(EVERYWHERE, encoding="utf-8")
    everywhere = f'plugins=["{tmp_path / "everywhere.py"}"]'
    done = _together(forks, tmp_path, runs.two / "recipe.toml", "--out", tmp_path / "run", "--set", everywhere)
    assert [one.code for one in done] == [0, 0], done
    assert [one.output.count("rehearsed by 2") for one in done] == [1, 0]
    assert losses(tmp_path / "run") == losses(runs.two)
    assert metrics(tmp_path / "run", "evaluation")[0]["loss"] == metrics(runs.two, "evaluation")[0]["loss"]


def test_processes_that_do_not_join_are_an_error(recipe_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU and without ACCELERATE_USE_CPU, accelerate lets each launched process train alone."""
    Accelerator(mixed_precision="no")  # this process is alone from here on, whatever the environment says
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunError, match="2 processes were launched, but accelerate joins 1"):
        parts_of(recipe_path)
