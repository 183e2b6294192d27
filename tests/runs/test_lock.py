"""One run in one directory: the lock, between processes, and after one of them was killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fitune.errors import RunError
from fitune.runs.lock import HOLDER, LOCK, Holder, RunLock, is_locked

HOLD = """\
import sys
from pathlib import Path
from fitune.runs.lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of a directory until its input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_it_keeps_another_process_out_and_says_who_holds_it(tmp_path: Path) -> None:
    assert is_locked(tmp_path) is None
    with another_process(tmp_path) as process:
        holder = is_locked(tmp_path)
        assert holder is not None
        assert holder.process == process.pid
        with pytest.raises(RunError) as error, RunLock(tmp_path):
            pass
        assert re.fullmatch(
            rf"{re.escape(str(tmp_path))} is being written by process {process.pid} on \S+ since "
            r"\d{4}-\d\d-\d\d \d\d:\d\d: two runs cannot write one directory\. .+--out",
            error.value.message,
        )
        assert is_locked(tmp_path) == holder  # who was refused has taken nothing away
        process.communicate("")
    assert process.returncode == 0
    assert list(tmp_path.iterdir()) == []  # nothing else was written there


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    with another_process(tmp_path) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert json.loads((tmp_path / HOLDER).read_text())["process"] == process.pid  # it had no time to remove it
        assert is_locked(tmp_path) is None
        with RunLock(tmp_path):
            held = is_locked(tmp_path)
            assert held is not None
            assert held.process == os.getpid()
    assert is_locked(tmp_path) is None
    assert {place.name for place in tmp_path.iterdir()} == {"metrics.jsonl", LOCK}


def test_it_is_free_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), RunLock(tmp_path):
        raise ZeroDivisionError
    with RunLock(tmp_path):
        assert is_locked(tmp_path) is not None


def test_looking_keeps_nobody_out(tmp_path: Path) -> None:
    """Many may look at once, and none of them takes it for held."""
    with RunLock(tmp_path):
        (tmp_path / "file").touch()
    (tmp_path / LOCK).chmod(0o444)
    assert [is_locked(tmp_path) for _ in range(3)] == [None] * 3


def test_a_damaged_note_of_the_holder_is_no_error(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        (tmp_path / HOLDER).write_text('{"process": "me"')
        assert is_locked(tmp_path) == Holder()
        with pytest.raises(RunError, match="is being written by another process: "), RunLock(tmp_path):
            pass


def test_what_cannot_be_locked_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        RunError, match=r"file cannot be locked, so two runs might write it at once: \w.+ an --out on a"
    ):
        RunLock(tmp_path / "file").__enter__()

    import fcntl

    def unsupported(*arguments: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.raises(RunError, match=r"cannot be locked, so two runs might write it at once: .+ an --out on a disk"):
        RunLock(tmp_path).__enter__()
