"""The three streams of a process, whatever they are: closed, full, a pipe that nobody reads, of another encoding.

What cannot be said on standard error is lost, and ends nothing. What cannot be written to standard output ends a
command that is there to write it, in a line and without a traceback; a run goes on (`lenient_output`).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO, cast

from fitune.cli.output import Lenient, give_up
from fitune.errors import DataError, cause, one_line

UNREAD = 1
"""Exit code where nobody reads what is written any more, as click has it."""


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """While this lasts, all three are there and take any text; what cannot be written ends the process in a line."""
    open_streams()
    error_stream = sys.stderr
    sys.stderr = cast(TextIO, Lenient(error_stream))
    try:
        _must_be_somewhere()
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        sys.exit(UNREAD)
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else "standard output, or a file,"
        print(f"error: {one_line(str(where))} cannot be read or written: {cause(error)}", file=sys.stderr)
        sys.exit(2)
    finally:
        sys.stderr = error_stream
        for stream in (sys.stdout, error_stream):
            give_up(stream)


def open_streams() -> None:
    """Open what is closed, from and to nowhere: the next file would take its number, and what is printed be in it.
    Characters that an encoding has not are written as escapes.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", errors="backslashreplace", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if (reconfigure := getattr(stream, "reconfigure", None)) is not None:
            reconfigure(errors="backslashreplace")


def read_text() -> str:
    """All of standard input. Raises `DataError` where it is no text in UTF-8, or cannot be read."""
    try:
        found = getattr(sys.stdin, "buffer", sys.stdin).read()
    except (OSError, ValueError) as error:
        raise DataError(f"standard input cannot be read: {cause(error)}. Give the prompt as text") from None
    return _decoded(found)


def read_line() -> str | None:
    """A line of it, without its end; None behind the last. Raises `DataError` as `read_text`."""
    try:
        found = getattr(sys.stdin, "buffer", sys.stdin).readline()
    except (OSError, ValueError) as error:
        raise DataError(f"standard input cannot be read: {cause(error)}. Give questions as text") from None
    return _decoded(found).rstrip("\r\n") if found else None


def argument_text(text: str, name: str) -> str:
    """An argument as text, whatever encoding the terminal was taken to have. Raises `DataError` if it is no UTF-8."""
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeError:
        raise DataError(f"{name} is not UTF-8. Give it in UTF-8, as terminals do") from None


def _decoded(found: bytes | str) -> str:
    if isinstance(found, str):
        return found
    try:
        return found.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise DataError("standard input is not UTF-8. Save the prompt as UTF-8") from None


def _must_be_somewhere() -> None:
    """End the process where its working directory is gone: nothing that is named from there can be found."""
    try:
        Path.cwd()
    except OSError:
        print("error: the working directory is gone. Change to one that is there: cd", file=sys.stderr)
        sys.exit(2)
