"""Memory that runs out amid a layer that two processes share: both are started again with less, by who started them."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from fitune import Interrupted
from fitune.testing import write_recipe, write_tiny_data
from fitune.train.several import start_processes
from support.blows import join_again
from support.fault_suite import free_port
from support.forked import Ended, Forks
from support.tiny import adapter, assert_close, losses, metrics
from support.traps import write_trap


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("handover")
    changes = {
        "train": {"micro_batch": 1, "steps": 5, "epsilon": 1e-4},
        "checkpoint": {"minutes": 0, "steps": 2},
        "memory": {"recoveries": 2},
    }
    path = write_recipe(folder / "recipe", changes)
    write_tiny_data(path.parent / "data.jsonl", rows=6)
    return path


@pytest.fixture(scope="module")
def plain(recipe: Path, forks: Forks) -> Path:
    """A run of both that nothing disturbs."""
    out = recipe.parent.parent / "plain"
    (ended,) = _until_done(recipe, forks, out, step=0)
    assert [one.code for one in ended] == [0, 0], ended
    return out


def _until_done(
    recipe: Path,
    forks: Forks,
    out: Path,
    *,
    step: int,
    enough: int = 1,
    strategy: str = "fsdp",
    rehearsed: bool = False,
) -> list[list[Ended]]:
    """Both processes, started again as `ft run --gpus` does where one asks for it; how they ended each time."""
    plugin = out.with_suffix(".py")
    write_trap(plugin, step=step, enough=enough, rehearsed=rehearsed)
    strategies = f'[{{use="accumulation", steps=2}}, {{use="trap"}}, {{use="{strategy}"}}]'
    given: list[str | Path] = ["run", recipe, "--out", out]
    for one in (f'plugins=["{plugin}"]', f"memory.strategy={strategies}"):
        given += ["--set", one]
    starts: list[list[Ended]] = []
    while not starts or starts[-1][1].code == 75:
        values: dict[str, Any] = {"processes": 2, "port": free_port(), "again": str(out.with_suffix(".again"))}
        children = [forks.start(given, cwd=out.parent, prepare=join_again, rank=rank, **values) for rank in range(2)]
        starts.append([forks.wait(child) for child in children])
    return starts


def test_both_go_on_from_the_newest_checkpoint(recipe: Path, plain: Path, forks: Forks) -> None:
    """The fourth step runs out, and the third is made again."""
    out = recipe.parent.parent / "once"
    first, second = _until_done(recipe, forks, out, step=4)
    assert "error" not in first[1].output
    assert [one.code for one in second] == [0, 0], second
    said = second[0].output
    assert "goes on after 2 steps" in said
    assert "out of GPU memory in the step after 3 steps: CUDA out of memory. Tried to allocate 172.00 MiB.\n" in said
    assert "goes on from step 2, that of the newest checkpoint: 1 are made again" in said
    assert losses(out) == pytest.approx(losses(plain), rel=1e-5)
    assert_close(adapter(out).values(), adapter(plain).values(), relative=1e-4)
    (recovery,) = metrics(out, "recovery")
    assert 'use = "gradient-checkpointing"' in str(recovery)
    assert "OutOfMemoryError" in (out / "error.txt").read_text(encoding="utf-8")  # of the second process
    assert json.loads((out / "run.json").read_text(encoding="utf-8"))["state"] == "done"


def test_each_time_takes_less_until_none_is_left(recipe: Path, forks: Forks) -> None:
    """What was used is known to all that come after it."""
    out = recipe.parent.parent / "thrice"
    starts = _until_done(recipe, forks, out, step=1, enough=3)
    assert [both[1].code for both in starts] == [75, 75, 2]
    assert 'part = "mlp"' in starts[1][0].output
    assert 'part = "layer"' in starts[2][0].output
    assert "error: process 1: out of GPU memory in training: CUDA out of memory." in starts[2][1].output
    assert "It went on 2 times ([memory] recoveries)" in starts[2][1].output


@pytest.mark.parametrize("strategy", ["fsdp", "context-parallel"])
def test_a_rehearsal_is_made_again_with_less(recipe: Path, forks: Forks, strategy: str) -> None:
    out = recipe.parent.parent / f"rehearsed-{strategy}"
    first, second = _until_done(recipe, forks, out, step=1, strategy=strategy, rehearsed=True)
    assert not metrics(out, "step") or first[1].code == 75
    assert [one.code for one in second] == [0, 0], second
    assert "out of GPU memory in the rehearsal after 0 steps" in second[0].output


QUIET = {"OMP_NUM_THREADS": "1"}

ASKS = """
import json, os, signal, sys, time
file = os.environ["FITUNE_START_AGAIN"]
if os.path.exists(file):
    sys.exit(0)
if os.environ["RANK"] == "1":
    {before}
    open(file, "w").write(json.dumps({{"directory": "runs/tiny"}}))
    sys.exit(75)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(100)
"""


def test_the_others_are_ended_and_all_started_again() -> None:
    """At once: those that wait amid a layer hear no signal but the last."""
    assert start_processes([sys.executable, "-c", ASKS.format(before="")], 2, cpu=True, environment=QUIET) == 0


def test_none_is_started_again_that_was_asked_to_stop(tmp_path: Path) -> None:
    asked = "{signal.SIGTERM}"
    before = (
        f"signal.pthread_sigmask(signal.SIG_BLOCK, {asked}); open('{tmp_path}/ready', 'w'); signal.sigwait({asked})"
    )
    asker = threading.Thread(target=_ask, args=(tmp_path / "ready",))
    asker.start()
    with pytest.raises(Interrupted, match=r"stopped after GPU memory ran out, .*Go on with: ft run runs/tiny"):
        start_processes([sys.executable, "-c", ASKS.format(before=before)], 2, cpu=True, environment=QUIET)
    asker.join()


def _ask(ready: Path) -> None:
    while not ready.exists():
        threading.Event().wait(0.01)
    os.kill(os.getpid(), signal.SIGTERM)
