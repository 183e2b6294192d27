"""Which of the processes that a launcher started this is, known before torch or accelerate is imported; and what ends
a run of several that is no fault of this one.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path

from fitune.errors import RunError


def is_main_process() -> bool:
    """Whether this is the first of the launched processes, or the only one."""
    return process_index() == 0


def process_index() -> int:
    """Which of the launched processes this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def process_count() -> int:
    """How many processes were launched."""
    return int(os.environ.get("WORLD_SIZE", "1"))


class PeerFailed(RunError):
    """Another process of the run has failed, and has said so."""

    shared = True

    def __init__(self, process: int, said: str, *, memory: str | None = None, trace: str = "") -> None:
        """`said` is its error in a line; `memory` what its GPU said, if its memory ran out; `trace` its traceback."""
        super().__init__(f"process {process}: {said}")
        self.process = process
        self.memory = memory
        self.trace = trace


class PeerLost(RunError):
    """Another process of the run is gone, without a word."""

    def __init__(self, said: str) -> None:
        """`said` is what this process has seen of it."""
        super().__init__(f"another process of the run has ended, and this one cannot go on without it ({said})")


class StartAgain(RunError):
    """Memory ran out in this process while the others waited for it amid a layer: whoever started them starts all of
    them again.
    """

    exit_code = 75
    """As sysexits.h numbers a failure that another try may mend."""


AGAIN_FILE = "FITUNE_START_AGAIN"
"""Variable with the file in which whoever starts processes again looks for what they are to go on with."""


def again_file() -> Path | None:
    """The file in which a process leaves word that all are to be started again; None where nobody would do that."""
    name = os.environ.get(AGAIN_FILE)
    return Path(name) if name else None


ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""Variable with the file in which torch's launchers look for why a process has ended."""


def reads_errors() -> bool:
    """Whether whoever started the processes reads why they have ended."""
    return bool(os.environ.get(ERROR_FILE))


def tell_launcher(said: str, *, printed: bool) -> None:
    """Leave an error for whoever started the processes, if they read it, with whether it was printed."""
    if not reads_errors():
        return
    message = {"message": said, "extraInfo": {"timestamp": int(time.time())}}  # as torchrun reads it
    text = json.dumps({"message": message, "printed": printed, "at": time.time()})
    with contextlib.suppress(OSError):
        Path(os.environ[ERROR_FILE]).write_text(text, encoding="utf-8")
