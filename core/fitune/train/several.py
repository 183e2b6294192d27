"""Several processes of a run on this machine: `ft run RECIPE --gpus N` starts them, and ends when they have.

They are started by torch's elastic multiprocessing, as torchrun starts its own, and told in torchrun's variables which
of them they are. What torchrun does where one fails would let the others wait for half a minute, and print a page; here
they have seconds, and there is one error.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from fitune.compose.processes import AGAIN_FILE, StartAgain
from fitune.errors import Interrupted, RunError, sentences
from fitune.train.signals import HANGUP

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.api import SubprocessContext

GRACE = 5.0
"""Seconds that processes have to end by themselves once one has failed, and again once they are asked to."""

OFTEN = 0.1
"""Seconds between two looks at the processes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a process has ended."""

    process: int
    code: int
    """Its exit code; negative for the signal that ended it."""
    at: float
    """When, in seconds of the epoch, as far as it has said so itself."""
    said: str = ""
    """Its error; empty where it has left none."""
    printed: bool = False
    """Whether it has told the user."""
    killed: bool = False
    """Whether it was ended from here."""


def start_processes(command: Sequence[str], count: int, *, cpu: bool, environment: Mapping[str, str] = {}) -> int:
    """Run a command in so many processes, and wait for their end; gives the exit code of all.

    Where one asks for it (`fitune.train.handover`) all are ended, and started again. With `cpu` they see no GPU.
    SIGINT, SIGTERM and SIGHUP go on to each of them. Raises `RunError` where one has ended by an error that nobody has
    told, in whatever way.
    """
    home = Path(tempfile.mkdtemp(prefix="fitune-processes-"))
    again = home / "again.json"
    group = _Group()
    try:
        group.listen()
        for start in itertools.count(1):
            told = {**_common(count, cpu=cpu), AGAIN_FILE: str(again), **environment}
            ends = _run(command, count, home / str(start), told, group)
            if all(end.code != StartAgain.exit_code for end in ends):
                return code_of(ends)
            if group.asked:
                raise _stopped(again)
    finally:
        group.leave()
        shutil.rmtree(home, ignore_errors=True)
    raise AssertionError("numbers do not end")


def _stopped(again: Path) -> Interrupted:
    """What ends a run that was asked to stop when its processes were to be started again."""
    directory = json.loads(again.read_text(encoding="utf-8"))["directory"]
    return Interrupted(
        "stopped after GPU memory ran out, before the run went on with less. What was saved before that is kept. "
        f"Go on with: ft run {directory}"
    )


def code_of(ends: Sequence[End]) -> int:
    """The exit code of a run whose processes have ended so. Raises `RunError` if none has told the error."""
    failed = [end for end in ends if end.code not in (0, Interrupted.exit_code) and not end.killed]
    if not failed:
        return max(end.code for end in ends if not end.killed)
    if told := [end for end in failed if end.printed]:
        return min(told, key=lambda end: end.at).code
    # One that was ended by a signal, or by an error of its own, says more than those that have missed it.
    first = min(failed, key=lambda end: (end.code > 0 and not end.said, end.code > 0, end.at))
    if first.code < 0:
        name = signal.Signals(-first.code).name
        why = "The system does so where host memory runs out" if name == "SIGKILL" else ""
        raise RunError(
            sentences(f"process {first.process} of the run was ended by {name}", why, "Go on with: ft run DIR")
        )
    if first.said:
        raise RunError(f"process {first.process}: {first.said}")
    raise RunError(f"process {first.process} of the run has ended with exit code {first.code}, and has not said why")


def _common(count: int, *, cpu: bool) -> dict[str, str]:
    """What every process is told."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // count)),
    }
    if cpu:
        found |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    return found


class _Group:
    """The processes that are there: signals that ask this process to end go on to them."""

    def __init__(self) -> None:
        self.context: SubprocessContext | None = None
        self.asked = False
        """Whether they were asked to end, by a signal from outside."""
        asking = [signal.SIGTERM, signal.SIGINT, *([] if HANGUP is None else [HANGUP])]
        self._before = {number: signal.getsignal(number) for number in asking}
        self._hears = threading.current_thread() is threading.main_thread()  # signals come to that one alone

    def listen(self) -> None:
        """Take signals; again each time that torch has started processes, for it takes them then."""
        for number, handler in self._before.items() if self._hears else ():
            ignored = number == HANGUP and handler is signal.SIG_IGN
            signal.signal(number, signal.SIG_IGN if ignored else self._on_signal)

    def leave(self) -> None:
        """Leave signals to whom they went before."""
        for number, handler in self._before.items() if self._hears else ():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if self.context is not None:
            _send(self.context, signal.Signals(number))


def _run(command: Sequence[str], count: int, home: Path, environment: Mapping[str, str], group: _Group) -> list[End]:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, start_processes
    from torch.distributed.elastic.multiprocessing.api import SubprocessContext

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # which would tell of each signal
    context = start_processes(
        name="fitune",
        entrypoint=command[0],
        args={process: tuple(command[1:]) for process in range(count)},
        envs={process: {**environment, "RANK": str(process), "LOCAL_RANK": str(process)} for process in range(count)},
        logs_specs=DefaultLogsSpecs(log_dir=str(home)),
    )
    assert isinstance(context, SubprocessContext)
    group.context = context
    group.listen()
    try:
        if group.asked:  # while they were started
            _send(context, signal.SIGTERM)
        killed = _wait(context)
    except BaseException:
        context.close(signal.SIGKILL)
        raise
    finally:
        group.context = None
    return [_end(process, context, killed) for process in range(count)]


def _wait(context: SubprocessContext) -> set[int]:
    """Until all have ended; gives those that had to be ended, because another one has failed."""
    processes = {number: handler.proc for number, handler in context.subprocess_handlers.items()}
    failed_at: float | None = None
    asked: set[int] = set()
    while left := {number for number, process in processes.items() if process.poll() is None}:
        codes = [process.poll() for process in processes.values()]
        if StartAgain.exit_code in codes and asked != left:  # the others wait for it amid a layer, and hear nothing
            asked = left
            _send(context, signal.SIGKILL)
        if failed_at is None and any(code not in (None, 0, Interrupted.exit_code) for code in codes):
            failed_at = time.monotonic()
        if failed_at is not None and time.monotonic() > failed_at + GRACE and not asked:
            asked = left
            _send(context, signal.SIGTERM)
        if failed_at is not None and time.monotonic() > failed_at + 2 * GRACE:
            _send(context, signal.SIGKILL)
        with contextlib.suppress(Exception):  # it takes longer
            processes[min(left)].wait(OFTEN)
    return asked


def _send(context: SubprocessContext, number: signal.Signals) -> None:
    """A signal to each that is there."""
    for handler in context.subprocess_handlers.values():
        if handler.proc.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(handler.proc.pid, number)


def _end(process: int, context: SubprocessContext, killed: set[int]) -> End:
    code = context.subprocess_handlers[process].proc.poll()
    left: Any = {}
    with contextlib.suppress(OSError, ValueError):
        left = json.loads(Path(context.error_files[process]).read_text(encoding="utf-8"))
    said = left.get("message", {}).get("message", "")
    at = float(left.get("at", time.time()))
    return End(
        process=process,
        code=1 if code is None else code,
        at=at,
        said=said,
        printed=bool(left.get("printed")),
        killed=process in killed,
    )
