"""A wish that a run stop: asked by a signal or a plugin, at any moment and from any thread; kept by the loop."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from fitune.plugin.events import StopRequest


@contextlib.contextmanager
def asked_by_signals(stop: StopRequest) -> Iterator[None]:
    """While this lasts, SIGTERM and SIGINT ask the run to stop; a second one ends the process at once, with the exit
    code that shells give it (128 and its number).
    """
    if threading.current_thread() is not threading.main_thread():  # signals come to the main one alone
        yield
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop.is_asked():
            os._exit(128 + number)
        name = signal.Signals(number).name
        stop.ask(name)
        # Straight to the terminal: what prints may be in the midst of it.
        with contextlib.suppress(OSError):
            os.write(2, f"\n{name}: the run finishes its step, saves and ends. A second one ends it at once\n".encode())

    signals = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, on_signal) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
