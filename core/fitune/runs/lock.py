"""One run in one directory: a lock that the kernel holds for the process, and frees when it ends, however it ends.

Beside it stands a file that says who holds it; that one may be left over, and is believed only while the lock is held.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import warnings
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from fitune.errors import RunError
from fitune.plugin.reading import read_json
from fitune.runs.atomic import write_file

if TYPE_CHECKING:
    from filelock import BaseFileLock

LOCK, HOLDER = ".lock", ".lock.json"
"""Files in a run's directory: what is locked, and who holds it."""

PATIENCE = 0.3
"""Seconds to wait for the lock: somebody who only looks at it has it for a moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who writes a run's directory."""

    process: int | None = None
    """Number of the process; None where the file that says so cannot be read."""
    host: str | None = None
    since: str | None = None
    """When it began, in ISO 8601, UTC."""

    def __str__(self) -> str:
        if self.process is None:
            return "another process"
        return f"process {self.process} on {self.host} since {local_time(self.since)}"


class RunLock:
    """Holds a run's directory while the `with` block lasts. One process of a run takes it, for all of them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock: BaseFileLock | None = None

    def __enter__(self) -> RunLock:
        """Take it. Raises `RunError` where another process has it, or where the file system knows no locks."""
        self._lock = _acquired(self.directory)
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        holder = Holder(process=os.getpid(), host=socket.gethostname(), since=now)
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
            write_file(self.directory / HOLDER, json.dumps(asdict(holder)) + "\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it back; where nothing but the lock is in the directory, leave nothing there."""
        assert self._lock is not None
        with contextlib.suppress(OSError):
            (self.directory / HOLDER).unlink()
        with contextlib.suppress(OSError):
            if [place.name for place in self.directory.iterdir()] == [LOCK]:
                (self.directory / LOCK).unlink()  # while it is held, so that nobody else can hold this file
        self._lock.release()
        self._lock = None


def is_locked(directory: Path) -> Holder | None:
    """Who writes a run's directory now; None if nobody does. Writes nothing, and keeps nobody from locking it."""
    try:
        held = _is_held(directory / LOCK)
    except OSError:  # there is none, or it is nothing that one may look at
        return None
    return _holder(directory) if held else None


def local_time(moment: str | None) -> str:
    """A moment in ISO 8601 as a person here reads it, to the minute; as it is, where it is no such thing."""
    try:
        return datetime.fromisoformat(moment or "").astimezone().strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):
        return moment or "unknown"


def _acquired(directory: Path) -> BaseFileLock:
    from filelock import FileLock, SoftFileLock, Timeout

    lock: BaseFileLock = FileLock(directory / LOCK, fallback_to_soft=False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a lock that is no lock, which is an error here
            lock.acquire(timeout=PATIENCE, poll_interval=PATIENCE / 10)
    except Timeout:
        raise RunError(
            f"{directory} is being written by {_holder(directory)}: two runs cannot write one directory. Wait for it, "
            "stop it, or give another --out"
        ) from None
    except (OSError, NotImplementedError) as error:
        raise _cannot(directory, getattr(error, "strerror", None) or str(error)) from error
    if isinstance(lock, SoftFileLock):  # a file that says "locked", also after its process was killed
        lock.release()
        raise _cannot(directory, "its file system knows no locks")
    return lock


def _cannot(directory: Path, why: str) -> RunError:
    return RunError(
        f"{directory} cannot be locked, so two runs might write it at once: {why}. Give an --out on a disk that can be "
        "written to and locked"
    )


def _holder(directory: Path) -> Holder:
    try:
        found = read_json(directory / HOLDER)
        return Holder(process=int(found["process"]), host=str(found["host"]), since=str(found["since"]))
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return Holder()


def _is_held(file: Path) -> bool:
    """Whether a lock file is locked. Raises `OSError`."""
    if sys.platform == "win32":
        from filelock import FileLock, Timeout

        try:
            with FileLock(file).acquire(timeout=0):
                return False
        except Timeout:
            return True
    import fcntl

    number = os.open(file, os.O_RDONLY | os.O_NONBLOCK)  # a pipe in its place is not waited for
    try:
        # Shared, so that all may look at once, in a directory of somebody else's too.
        fcntl.flock(number, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(number)
    return False


LEFT_OVER = (LOCK, HOLDER)
"""Names that a run's directory may hold though nothing was ever written there."""
