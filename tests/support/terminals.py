"""What befalls the streams of a process of `ft` (see `forked`): closed, full, unread, another encoding, a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import signal
import sys
import termios
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from support.blows import before, send_at

CLOSED, FULL, UNREAD, ASCII = "closed", "full", "unread", "ascii"


def streams(board: memoryview, out: str, err: str, at: str = "", number: int = 0, signals: Sequence[int] = ()) -> None:
    """Give the process these for its standard output and standard error; then signals, as `send` does."""
    for file, kind in ((1, out), (2, err)):
        _become(file, kind)
    if at:
        send_at(at, number, signals)


def terminal(board: memoryview, at: str, number: int, log: str) -> None:
    """Give the process a terminal of its own, which is gone as it begins a function for the n-th time: the kernel sends
    SIGHUP then. What was printed until that is in the log.
    """
    os.setsid()
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    for file in (0, 1, 2):
        os.dup2(slave, file)
    os.close(slave)
    for name, file, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        setattr(sys, name, os.fdopen(file, mode, encoding="utf-8", closefd=False))
    os.set_blocking(master, False)

    def hang_up() -> None:
        with contextlib.suppress(OSError), Path(log).open("wb") as kept:
            while read := os.read(master, 1 << 16):
                kept.write(read)
        os.close(master)

    before(at, number, hang_up)


def _become(file: int, kind: str) -> None:
    name = {1: "stdout", 2: "stderr"}[file]
    if kind == CLOSED:
        os.close(file)
        setattr(sys, name, None)  # as Python begins where it finds it closed
        return
    if kind == FULL:
        os.dup2(os.open("/dev/full", os.O_WRONLY), file)
    elif kind == UNREAD:
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, file)
    encoding = "ascii" if kind == ASCII else "utf-8"
    setattr(sys, name, _text(file, encoding))


def _text(file: int, encoding: str) -> TextIO:
    return io.TextIOWrapper(io.FileIO(file, "w", closefd=False), encoding=encoding, errors="strict", write_through=True)


def nowhere(board: memoryview) -> None:
    """The working directory is deleted."""
    here = Path.cwd() / "gone"
    here.mkdir()
    os.chdir(here)
    here.rmdir()


def without_hangup(board: memoryview, at: str, number: int, signals: Sequence[int]) -> None:
    """As `nohup` starts a process; then signals, as `send` does."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    send_at(at, number, signals)
