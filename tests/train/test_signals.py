"""Real processes that get real signals: what they end with, what is saved, and that the run can go on."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import stat
from pathlib import Path
from typing import Any

import pytest

from fitune.checkpoint import files
from fitune.compose.evaluate import Evaluator
from fitune.compose.parts import compose
from fitune.data import prepare
from fitune.runs.atomic import publish
from fitune.runs.provenance import write_recipe
from fitune.train import loop, save
from support.blows import hold, send
from support.fault_recipe import write_fault_recipe
from support.fault_suite import curve_of, outcome
from support.forked import LIMIT, Ended, Forks
from support.places import place_of
from support.terminals import terminal, without_hangup

STEPS = 6
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
STEP = place_of(loop._step)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Evaluations after every third step, checkpoints after every second one."""
    return write_fault_recipe(tmp_path_factory.mktemp("signals") / "recipe", STEPS)


@pytest.fixture(scope="module")
def plain(forks: Forks, recipe: Path) -> dict[str, Any]:
    """What comes of it where nothing disturbs it."""
    ended = forks.run(["run", recipe, "--out", recipe.parent / "plain"], cwd=recipe.parent)
    assert ended.code == 0, ended.output
    return outcome(recipe.parent / "plain")


class Runs:
    """Runs of the recipe in one directory."""

    def __init__(self, forks: Forks, recipe: Path, home: Path) -> None:
        self.forks, self.recipe, self.home = forks, recipe, home
        self.directory = home / "run"

    def signalled(self, at: str, number: int, *signals: int) -> Ended:
        """Begin a run that gets these signals as it enters a function for the n-th time."""
        given: list[str | Path] = ["run", self.recipe, "--out", self.directory]
        numbers = [int(one) for one in signals]
        return self.forks.run(given, cwd=self.home, prepare=send, at=at, number=number, signals=numbers)

    def go_on(self, *given: str | Path) -> Ended:
        """Go on with it, to its end."""
        ended = self.forks.run(["run", *(given or [self.directory])], cwd=self.home)
        assert ended.code == 0, ended.output
        return ended

    def checkpoints(self) -> set[str]:
        """Names of what is in the directory of checkpoints."""
        return {place.name for place in self.directory.glob("checkpoints/*")}


@pytest.fixture
def runs(forks: Forks, recipe: Path, tmp_path: Path) -> Runs:
    return Runs(forks, recipe, tmp_path)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_in_a_step(runs: Runs, plain: dict[str, Any], number: signal.Signals) -> None:
    ended = runs.signalled(STEP, 3, number)
    assert ended.code == 3
    assert f"\n{number.name}: the run finishes its step, saves and ends. A second one ends it at once\n" in ended.output
    place = runs.directory / "checkpoints" / "step-3"
    assert ended.output.splitlines()[-1] == (
        f"error: stopped after 3 of {STEPS} steps: {number.name}. Saved in {place}. Go on with: ft run {runs.directory}"
    )
    assert runs.checkpoints() == {"step-2", "step-3"}
    assert [step for event, step, _ in curve_of(runs.directory) if event == "step"] == [1, 2, 3]
    assert "goes on after 3 steps" in runs.go_on().output
    assert outcome(runs.directory) == plain


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(runs: Runs, plain: dict[str, Any], number: signal.Signals) -> None:
    ended = runs.signalled(STEP, 4, signal.SIGTERM, number)
    assert ended.code == 128 + number
    assert runs.checkpoints() == {"step-2", "step-3"}
    assert "goes on after 3 steps" in runs.go_on().output
    assert outcome(runs.directory) == plain


def test_a_signal_cuts_an_evaluation_short(runs: Runs, plain: dict[str, Any]) -> None:
    """In the second batch of the evaluation after step 3; the one before the first step has three."""
    ended = runs.signalled(place_of(Evaluator._go_on), 5, signal.SIGTERM)
    assert ended.code == 3
    assert f"stopped after 3 of {STEPS} steps: SIGTERM" in ended.output
    assert [step for event, step, _ in curve_of(runs.directory) if event == "evaluation"] == [0]
    assert "held out after 3 steps" in runs.go_on().output
    assert outcome(runs.directory) == plain


def test_a_signal_while_a_checkpoint_is_written(runs: Runs, plain: dict[str, Any]) -> None:
    """It is finished, that of step 2; so is the step that comes after it."""
    ended = runs.signalled(place_of(publish, within=files), 1, signal.SIGTERM)
    assert ended.code == 3
    assert f"stopped after 3 of {STEPS} steps: SIGTERM" in ended.output
    assert runs.checkpoints() == {"step-2", "step-3"}
    runs.go_on()
    assert outcome(runs.directory) == plain


@pytest.mark.parametrize(
    ("at", "left"),
    [
        (place_of(prepare._Chain.meta), False),
        (place_of(compose), False),
        (place_of(write_recipe), True),
        (place_of(publish, within=save), True),
    ],
    ids=["preparing data", "loading", "first files", "final save"],
)
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_where_nothing_waits_for_one(
    runs: Runs, plain: dict[str, Any], at: str, left: bool, number: signal.Signals
) -> None:
    """It ends the process, as it ends others; what is not finished has no name, and the same command goes on."""
    ended = runs.signalled(at, 1, number)
    assert ended.code == (130 if number == signal.SIGINT else -number)
    assert "Traceback" not in ended.output
    assert (runs.directory / "identity.json").exists() == left
    assert not (runs.directory / "adapter").exists()
    runs.go_on(runs.recipe, "--out", runs.directory, "--resume")
    assert outcome(runs.directory) == plain


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGHUP])
def test_a_hangup_right_behind_another_signal_says_nothing_new(
    runs: Runs, plain: dict[str, Any], first: signal.Signals
) -> None:
    """The kernel and the shell each send one where a terminal is lost, and systemd one behind its SIGTERM."""
    ended = runs.signalled(STEP, 4, first, signal.SIGHUP)
    assert ended.code == 3
    assert f"stopped after 4 of {STEPS} steps: {first.name}" in ended.output
    runs.go_on()
    assert outcome(runs.directory) == plain


def test_a_hangup_is_not_met_where_it_is_ignored(runs: Runs, plain: dict[str, Any]) -> None:
    """By `--keep-going`, and under `nohup`."""
    given: list[str | Path] = ["run", runs.recipe, "--out", runs.directory]
    values: dict[str, Any] = {"at": STEP, "number": 3, "signals": [int(signal.SIGHUP)]}
    ended = runs.forks.run([*given, "--keep-going"], cwd=runs.home, prepare=send, **values)
    assert ended.code == 0, ended.output
    assert outcome(runs.directory) == plain
    shutil.rmtree(runs.directory)
    ended = runs.forks.run(given, cwd=runs.home, prepare=without_hangup, **values)
    assert ended.code == 0, ended.output
    assert outcome(runs.directory) == plain


@pytest.mark.parametrize("keep_going", [False, True])
def test_a_terminal_that_is_lost(runs: Runs, plain: dict[str, Any], keep_going: bool) -> None:
    """In the third step of a run that draws its progress there."""
    given: list[str | Path] = ["run", runs.recipe, "--out", runs.directory, *(["--keep-going"] if keep_going else [])]
    log = runs.home / "terminal"
    ended = runs.forks.run(given, cwd=runs.home, prepare=terminal, at=STEP, number=3, log=str(log))
    assert ended.code == (0 if keep_going else 3)
    said = log.read_text(encoding="utf-8")
    assert "\x1b[" in said  # it was drawn on
    assert "Traceback" not in said
    if not keep_going:
        assert runs.checkpoints() == {"step-2", "step-3"}
        assert "goes on after 3 steps" in runs.go_on().output
    assert outcome(runs.directory) == plain


def test_two_processes_cannot_write_one_run(runs: Runs, plain: dict[str, Any]) -> None:
    """The second is refused while the first is in its third step, and changes nothing."""
    ready, go = (runs.home / name for name in ("ready", "go"))
    for pipe in (ready, go):
        os.mkfifo(pipe)
    given: list[str | Path] = ["run", runs.recipe, "--out", runs.directory]
    held: dict[str, Any] = {"at": STEP, "number": 3}
    first = runs.forks.start(given, cwd=runs.home, prepare=hold, ready=str(ready), go=str(go), **held)
    _wait_for(ready)
    before = _seen(runs.directory)
    for again in ([runs.directory], [runs.recipe, "--out", runs.directory, "--resume"]):
        second = runs.forks.run(["run", *again], cwd=runs.home)
        assert second.code == 2
        (line,) = second.output.splitlines()
        process = json.loads((runs.directory / ".lock.json").read_text())["process"]
        assert line.startswith(f"error: {runs.directory} is being written by process {process} on ")
        assert "two runs cannot write one directory" in line
    assert _seen(runs.directory) == before
    opened = os.open(go, os.O_RDWR)  # which waits for nobody
    assert runs.forks.wait(first).code == 0
    os.close(opened)
    assert outcome(runs.directory) == plain


def _wait_for(pipe: Path) -> None:
    """Until another process has opened it for writing, and closed it."""
    number = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    poll = select.poll()
    poll.register(number, select.POLLHUP | select.POLLIN)
    assert poll.poll(1000 * LIMIT), "the first process did not come so far"
    os.close(number)


def _seen(directory: Path) -> list[tuple[Path, int, int]]:
    """Every file and directory, its time and size."""
    found = ((place, place.stat()) for place in directory.rglob("*"))
    return sorted((p, s.st_mtime_ns, s.st_size) for p, s in found if not stat.S_ISFIFO(s.st_mode))
