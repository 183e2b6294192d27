"""What befalls a process of `ft`: kills, signals and pauses at moments that are chosen beforehand, and company.

These functions are called in the process itself, before it begins (see `forked`).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fitune.checkpoint import files
from fitune.compose import parts
from fitune.runs.atomic import begin
from fitune.train import assemble, loop, resume, run, save
from fitune.train.keeper import Keeper
from support.places import Function, place_of, put_around

PHASES = ("start", "loading", "first files", "between", "step", "evaluation", "checkpoint", "cleaning", "final save")
MARKS: tuple[tuple[Function, str], ...] = (
    (resume.find, "loading"),
    (parts.compose, "loading"),
    (assemble.must_be_same, "first files"),
    (run.train_run, "between"),
    (loop._step, "step"),
    (loop._evaluate, "evaluation"),
    (files.write, "checkpoint"),
    (Keeper._thin_out, "cleaning"),
    (save.save, "final save"),
)
"""Functions, and the phase that a process is in while they are at work."""
PHASE, OPERATIONS, FLUSHES = 0, 1, 2
"""Places on the board of a process."""
Change = tuple[Callable[[], object], Callable[[], object]]
"""How something begins, and how it ends."""
CHANGES = frozenset({"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Blow:
    """When a start is to be killed: one of the four."""

    operation: int | None = None
    """Before the n-th change of a file or directory in the run's."""
    flush: int | None = None
    """After the n-th fsync."""
    after: float | None = None
    """Seconds."""
    phase: str | None = None
    """As this one begins for the `number`-th time."""
    number: int = 1
    rank: int = 0
    """Which of the processes."""

    @property
    def kind(self) -> str:
        """In a table's words."""
        if self.phase is not None:
            return "beginning of a phase"
        return "time" if self.after is not None else "flush to the disk" if self.flush else "change of a file"


def strike(
    board: memoryview, directory: str, operation: int | None, flush: int | None, phase: str | None, number: int
) -> None:
    """Count changes of files and flushes on the board, note the phase there, and die at one of them."""
    for function, name in MARKS:
        if name == phase:
            before(place_of(function), number, lambda: os.kill(os.getpid(), signal.SIGKILL))
        _mark(board, function, PHASES.index(name))
    fsync = os.fsync

    def flushed(number: int) -> None:
        fsync(number)
        board[FLUSHES] += 1
        if board[FLUSHES] == flush:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if _changes(event, arguments, directory):
            board[OPERATIONS] += 1
            if board[OPERATIONS] == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = flushed  # type: ignore[assignment]
    sys.addaudithook(hook)


def strike_together(board: memoryview, rank: int, processes: int, port: int, **blow: Any) -> None:
    """Both `join` and `strike`."""
    join(board, rank, processes, port)
    strike(board, **blow)


def join(board: memoryview, rank: int, processes: int, port: int) -> None:
    """Be one of several processes that train together, as a launcher's environment tells each of them."""
    here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    os.environ |= {key: str(value) for key, value in {**here, "MASTER_PORT": port}.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"}


def join_again(board: memoryview, rank: int, processes: int, port: int, again: str) -> None:
    """The same, where whoever started them starts them again if one leaves word in this file."""
    join(board, rank, processes, port)
    os.environ["FITUNE_START_AGAIN"] = again


def _changes(event: str, arguments: tuple[Any, ...], directory: str) -> bool:
    """Whether an audit event is a change of a file or directory in this one."""
    if event == "open":
        path, _, flags = arguments
        if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return False
    elif event in CHANGES:
        path = arguments[0]
        if event in ("os.remove", "os.rmdir") and arguments[-1] != -1:  # relative to a directory that is open
            return True
    else:
        return False
    return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(directory)


def send(board: memoryview, at: str, number: int, signals: list[int]) -> None:
    """Send signals to the process itself as it begins a function (see `place_of`) for the n-th time."""
    send_at(at, number, signals)


def send_together(
    board: memoryview, rank: int, processes: int, port: int, at: str, number: int, signals: list[int]
) -> None:
    """Both `join` and `send`."""
    join(board, rank, processes, port)
    send_at(at, number, signals)


def send_at(at: str, number: int, signals: Sequence[int]) -> None:
    """The same, in the process itself."""

    def act() -> None:
        for one in signals:
            os.kill(os.getpid(), one)

    before(at, number, act)


def hold(board: memoryview, at: str, number: int, ready: str, go: str) -> None:
    """As it begins a function for the n-th time: open a pipe for writing, and wait until another one is opened so."""

    def act() -> None:
        Path(ready).open("w").close()
        Path(go).open().close()

    before(at, number, act)


def deny(board: memoryview, means: str, place: str, at: str, first: int, last: int | None) -> None:
    """Let nothing more be written once a function begins for the `first` time, until it does for the `last` time."""
    begin, end = MEANS[means](Path(place))
    before(at, first, begin)
    if last is not None:
        before(at, last, end)


def _full(place: Path) -> Change:
    """The file system of this directory is full."""
    filler = place / "filler"

    def fill() -> None:
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass

    return fill, filler.unlink


def _limited(place: Path) -> Change:
    """No file may grow beyond a kilobyte, wherever it is."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    begin, end = (partial(resource.setrlimit, resource.RLIMIT_FSIZE, (soft, hard)) for soft in (1024, hard))
    return begin, end


def _forbidden(place: Path) -> Change:
    """No directory may be made for what is to be saved; permissions themselves would not stop an administrator."""
    forbidden = False

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            if forbidden:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return function(*arguments)

        return wrapped

    def turn() -> None:
        nonlocal forbidden
        forbidden = not forbidden

    put_around(place_of(begin), wrap)
    return turn, turn


MEANS: dict[str, Callable[[Path], Change]] = {"full": _full, "limited": _limited, "forbidden": _forbidden}


def before(at: str, number: int, act: Callable[[], object]) -> None:
    """Do something as a function begins for the n-th time."""
    count = 0

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapped(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                act()
            return function(*arguments, **named)

        return wrapped

    put_around(at, wrap)


def _mark(board: memoryview, function: Function, phase: int) -> None:
    """Have a function note its phase while it is at work."""

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def marked(*arguments: Any, **named: Any) -> Any:
            before, board[PHASE] = board[PHASE], phase
            try:
                return function(*arguments, **named)
            finally:
                board[PHASE] = before

        return marked

    put_around(place_of(function), wrap)
