"""A wish that a run stop: asked by a signal or a plugin, at any moment and from any thread; kept by the loop."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from fitune.plugin.events import StopRequest

TOGETHER = 5.0
"""Seconds within which signals to one of several processes are one."""

HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)
"""Sent where a terminal or its connection is lost; Windows has none."""


def ignore_hangup() -> None:
    """Go on where the terminal is lost, from now on."""
    if HANGUP is not None and threading.current_thread() is threading.main_thread():
        signal.signal(HANGUP, signal.SIG_IGN)


@contextlib.contextmanager
def asked_by_signals(stop: StopRequest, *, processes: int = 1) -> Iterator[None]:
    """While this lasts, SIGTERM, SIGINT and SIGHUP (a terminal or a connection that is lost) ask the run to stop; a
    second one ends the process at once, with the exit code that shells give it (128 and its number). SIGHUP does not
    where it is ignored, as `nohup` has it; and one that comes within `TOGETHER` seconds of another signal says nothing
    new: shells and the system each send it, and with SIGTERM.

    Each of several processes may be sent a signal by the terminal and once more by the launcher, or only after another
    process has told it to stop: what comes within `TOGETHER` seconds is one, and one that comes late ends nothing.
    """
    if threading.current_thread() is not threading.main_thread():  # signals come to the main one alone
        yield
        return
    first: list[float] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if first and not ((processes > 1 or number == HANGUP) and now - first[0] < TOGETHER):
            os._exit(128 + number)
        if first:
            return
        first.append(now)
        name = signal.Signals(number).name
        stop.ask(name)
        # Straight to the terminal: what prints may be in the midst of it.
        with contextlib.suppress(OSError):
            os.write(2, f"\n{name}: the run finishes its step, saves and ends. A second one ends it at once\n".encode())

    signals = [signal.SIGTERM, signal.SIGINT]
    if HANGUP is not None and signal.getsignal(HANGUP) is not signal.SIG_IGN:
        signals.append(HANGUP)
    before = {number: signal.signal(number, on_signal) for number in signals}
    try:
        yield
    finally:
        if not (processes > 1 and stop.is_asked()):
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
