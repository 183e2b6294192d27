"""What a run prints is no reason for it to end: the disk under its log may be full, its terminal gone."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast


class Lenient:
    """A text stream that loses what cannot be written, and is otherwise the stream that it stands for."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write it, if that is possible."""
        with contextlib.suppress(OSError, ValueError):  # the latter of one that is closed
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Hand it to the system, if that is possible."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def lenient_output() -> Iterator[None]:
    """While this lasts, nothing that is printed raises `OSError`; nor does what was not written by then, at the end of
    the process, which would change its exit code.
    """
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, Lenient(stream)) for stream in streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
        for stream in streams:
            give_up(stream)


def give_up(stream: TextIO) -> None:
    """Write what waits in a stream, or drop it."""
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
