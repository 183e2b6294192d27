"""Processes that are started together: they are told which they are, get signals, and end with one error."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from fitune import RunError
from fitune.cli.several import without
from fitune.train import several
from fitune.train.several import End, code_of, start_processes

QUIET = {"OMP_NUM_THREADS": "1"}


def _python(text: str) -> list[str]:
    return [sys.executable, "-c", f"import json, os, signal, sys, time\n{text}"]


def test_each_is_told_which_it_is(tmp_path: Path) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "CUDA_VISIBLE_DEVICES")
    text = f"open('{tmp_path}/' + os.environ['RANK'], 'w').write(' '.join(os.environ[n] for n in {names}))"
    assert start_processes(_python(text), 2, cpu=True, environment=QUIET) == 0
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["0 0 2 2 127.0.0.1 ", "1 1 2 2 127.0.0.1 "]


def test_one_that_is_killed_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one would wait for it, and hears no signal but the last."""
    monkeypatch.setattr(several, "GRACE", 0.2)
    text = """
if os.environ["RANK"] == "1":
    os.kill(os.getpid(), signal.SIGKILL)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(100)
"""
    with pytest.raises(
        RunError, match=r"process 1 of the run was ended by SIGKILL. The system does so where host memory"
    ):
        start_processes(_python(text), 2, cpu=True, environment=QUIET)


def test_an_error_that_nobody_has_told_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(several, "GRACE", 0.2)
    text = """
if os.environ["RANK"] == "1":
    message = {"message": {"message": "no such file"}, "printed": False, "at": 1.0}
    open(os.environ["TORCHELASTIC_ERROR_FILE"], "w").write(json.dumps(message))
    sys.exit(2)
time.sleep(100)
"""
    with pytest.raises(RunError, match=r"^process 1: no such file$"):
        start_processes(_python(text), 2, cpu=True, environment=QUIET)


def test_a_signal_goes_on_to_all(tmp_path: Path) -> None:
    """Each leaves word of it, and ends as a run does that can go on."""
    text = f"""
def on_signal(number, frame):
    open('{tmp_path}/' + os.environ['RANK'], 'w').write(str(number))
    sys.exit(3)
signal.signal(signal.SIGTERM, on_signal)
open('{tmp_path}/ready-' + os.environ['RANK'], 'w')
time.sleep(100)
"""

    def ask() -> None:
        while not all((tmp_path / f"ready-{rank}").exists() for rank in range(2)):
            threading.Event().wait(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    asker = threading.Thread(target=ask)
    asker.start()
    assert start_processes(_python(text), 2, cpu=True, environment=QUIET) == 3
    asker.join()
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == [str(int(signal.SIGTERM))] * 2


LOST = End(process=0, code=2, at=2.0, said="another process of the run has ended")


@pytest.mark.parametrize(
    ("ends", "code", "said"),
    [
        ([End(process=0, code=0, at=1.0), End(process=1, code=0, at=1.0)], 0, None),
        ([End(process=0, code=3, at=1.0), End(process=1, code=3, at=1.0)], 3, None),
        ([End(process=0, code=2, at=1.0, said="a", printed=True), End(process=1, code=2, at=1.0, said="a")], 2, None),
        ([LOST, End(process=1, code=-9, at=3.0)], None, "process 1 of the run was ended by SIGKILL"),
        ([LOST, End(process=1, code=2, at=1.0, said="no memory")], None, "process 1: no memory"),
        ([End(process=0, code=1, at=1.0)], None, "process 0 of the run has ended with exit code 1"),
        ([End(process=0, code=1, at=1.0, said="KeyError", printed=True), LOST], 1, None),
        (
            [End(process=0, code=-15, at=1.0, killed=True), End(process=1, code=2, at=0.5, said="b")],
            None,
            "process 1: b",
        ),
    ],
)
def test_what_all_end_with(ends: list[End], code: int | None, said: str | None) -> None:
    if said is None:
        assert code_of(ends) == code
        return
    with pytest.raises(RunError) as error:
        code_of(ends)
    assert said in error.value.message


def test_the_processes_are_not_told_to_start_others() -> None:
    given = ["run", "r.toml", "--gpus", "2", "--set", "a=1", "--processes=3", "--out", "run"]
    assert without(given) == ["run", "r.toml", "--set", "a=1", "--out", "run"]
