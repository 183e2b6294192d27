"""A file of JSON lines that outlives a full disk: what cannot be written waits in memory, and no line is ever torn."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections import deque
from collections.abc import Iterable, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from fitune.errors import cause
from fitune.recipe.secrets import told
from fitune.runs.atomic import write_file

WAITING = 50_000
"""Lines that wait in memory at most (some 20 MB); then the oldest of them are lost."""


class LineFile:
    """Appends lines, each handed to the system at once, so that a killed process keeps them. Never raises `OSError`."""

    def __init__(self, path: Path, kept: Iterable[str] | None = None, waiting: int = WAITING) -> None:
        """Begin the file anew, or with the lines of it that are `kept`: the others are cut off, atomically."""
        self.path = path
        self._first = None if kept is None else "".join(f"{line}\n" for line in kept)
        self._begun = False
        self._file: FileIO | None = None
        self._size = 0
        self._waiting: deque[bytes] = deque(maxlen=waiting)
        self._complaints = Complaints()
        self._write_all()

    def append(self, values: Mapping[str, Any]) -> None:
        """Write a line, after those that wait."""
        self._waiting.append(json_line(values).encode())
        self._write_all()

    def keep(self) -> None:
        """Flush what was written down to the disk: a power failure takes no more than what comes after."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Write what waits, if there is room now, and close the file."""
        self._write_all()
        if self._waiting:
            self._complaints.tell("lost", f"{len(self._waiting)} lines of {self.path} could not be written")
        self._shut()

    def _write_all(self) -> None:
        try:
            self._begin()
            while self._waiting:
                self._write(self._waiting[0])
                self._waiting.popleft()
        except OSError as error:
            what = f"{self.path} cannot be written: {cause(error)}. Training goes on, and its lines are written once "
            self._complaints.tell("file", what + "that is possible")
            self._shut()
        else:
            self._complaints.mended("file", f"{self.path} is written again, with the lines that were missing")

    def _begin(self) -> None:
        """Open it, as it should begin."""
        if not self._begun:
            write_file(self.path, self._first or "")
            self._size, self._begun, self._first = self.path.stat().st_size, True, None
        if self._file is None:
            self._file = FileIO(self.path, "r+", opener=_unlinked)
            self._file.truncate(self._size)
            self._file.seek(self._size)

    def _write(self, line: bytes) -> None:
        assert self._file is not None
        done = 0
        while done < len(line):  # a disk that is nearly full takes a part of it
            done += self._file.write(line[done:]) or 0
        self._size += len(line)

    def _shut(self) -> None:
        """Close it, with nothing behind its last whole line."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.truncate(self._size)
            with contextlib.suppress(OSError):
                self._file.close()
        self._file = None


def _unlinked(path: str, flags: int) -> int:
    """Open a file, and never what a link leads to. Raises `OSError`."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0))


def json_line(values: Mapping[str, Any]) -> str:
    """Values as a line of JSON; a number that is not finite, which JSON does not know, is null."""
    return json.dumps(finite(values), allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """The value, with None in place of every number in it that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return value


class Complaints:
    """Says each thing once, until it is mended."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def tell(self, subject: str, what: str) -> None:
        """Say what is wrong with a subject, unless that was said already."""
        if subject not in self._told:
            self._told.add(subject)
            print(f"warning: {told(what)}", file=sys.stderr)

    def mended(self, subject: str, what: str) -> None:
        """Say that a subject is as it should be again, if it was complained of."""
        if subject in self._told:
            self._told.remove(subject)
            print(f"note: {told(what)}", file=sys.stderr)
