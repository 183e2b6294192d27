"""A GPU that has run out of memory: knowing it when it comes, and what is noted of it."""

from __future__ import annotations

import contextlib
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch

from fitune.compose.processes import PeerFailed, is_main_process
from fitune.errors import RunError
from fitune.memory.fit.refit import Composition
from fitune.memory.oom.message import read_message
from fitune.recipe.secrets import told
from fitune.runs.atomic import write_file

LOG = "error.txt"
"""torch's message, for `ft explain-oom`."""
SAID = (
    "CUDA error: out of memory",
    "CUDA out of memory",
    "cudaErrorMemoryAllocation",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate",  # which had no memory for its handle
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "Error out of memory at line",  # bitsandbytes
)
"""What libraries say in a `RuntimeError` where memory is asked for beside torch's allocator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfMemory:
    """Memory that ran out."""

    doing: str
    """What it was asked for in: "loading", "rehearsal", "step" or "evaluation"."""
    said: str
    """By the GPU's libraries, in a line."""
    composition: Composition
    """What ran out."""
    undone: bool
    """Whether everything is as it was before."""
    since: float
    """When it was, in seconds of `time.perf_counter`."""
    step: int = 0
    """Steps that had been made by then, where the processes were started again for it."""


def said_by(error: BaseException | None) -> str | None:
    """What a GPU that has run out of memory said, in a line; None if the error, or its cause, is another one."""
    while error is not None:
        if isinstance(error, PeerFailed):
            return error.memory
        text = str(error)
        if isinstance(error, torch.OutOfMemoryError) or (
            isinstance(error, RuntimeError) and any(said in text for said in SAID)
        ):
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            return next((line for line in lines if "Tried to allocate" in line), lines[0] if lines else "out of memory")
        error = error.__cause__
    return None


def log(error: BaseException, directory: Path, *, alone: bool = False) -> None:
    """Leave the message in the run's directory; where that cannot be, it is told anyway. The first process does so for
    all, but for one that is `alone` with it.
    """
    if alone or is_main_process():
        with contextlib.suppress(OSError):
            of_peer = error.trace if isinstance(error, PeerFailed) else ""
            write_file(directory / LOG, told(of_peer or "".join(traceback.format_exception(error))))


def room_on(device: torch.device, said: str) -> int:
    """Bytes that torch's caching allocator could have of the device now, beside what is in use still; 0 without one.

    `said` is torch's message, which tells what a process is allowed (`set_per_process_memory_fraction`).
    """
    if device.type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    used = torch.cuda.memory_allocated(device)
    room = free + torch.cuda.memory_reserved(device) - used
    try:
        allowed = read_message(said.encode(), "torch").allowed
    except RunError:  # not torch's own message
        allowed = None
    return room if allowed is None else min(room, allowed.bytes - allowed.error - used)
