"""Going on after a GPU has run out of memory: knowing it when it comes, undoing what it cut short, freeing the card.

A step is undone by dropping its gradients and putting its random generators back: it changes nothing else before its
last part, the optimizer's. Where that has begun to change weights, it cannot be undone.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fitune.compose import Parts
from fitune.errors import RunError
from fitune.forecast.oom_message import read_message
from fitune.loss_scaling import ScalingState
from fitune.random_state import RandomState, random_state
from fitune.step import Phase

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

KNOWN_OPTIMIZERS = ("torch.optim.", "bitsandbytes.optim.")
"""Modules of optimizers that leave a trace, in tensors' versions or in their count of steps, of what they change."""


def out_of_memory(error: BaseException | None) -> str | None:
    """What a GPU that has run out of memory said, in a line; None if the error, or its cause, is another one."""
    while error is not None:
        text = str(error)
        if isinstance(error, torch.OutOfMemoryError) or (
            isinstance(error, RuntimeError) and any(said in text for said in SAID)
        ):
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            return next((line for line in lines if "Tried to allocate" in line), lines[0] if lines else "out of memory")
        error = error.__cause__
    return None


class Position:
    """Where a run stands, and what to go back to if what it does next fails."""

    def __init__(self, step: int = 0, evaluated: int = -1) -> None:
        self.step = step
        """Steps that are made."""
        self.evaluated = evaluated
        """After how many of them was the last evaluation."""
        self.doing = ""
        """"loading", "rehearsal", "step" or "evaluation"; empty between them."""
        self.phase: Phase = "forward"
        """Of the step."""
        self.random: RandomState | None = None
        """Where the generators stood before what is being done."""
        self._scaling: ScalingState | None = None
        self._before: dict[int, Mapping[str, object]] = {}

    def begin(self, parts: Parts, doing: str) -> None:
        """Note where everything stands before a step or an evaluation."""
        self.doing, self.phase = doing, "forward"
        self.random = random_state(parts.accelerator.device)
        self._scaling = parts.step.scaling.state() if parts.step.scaling else None

    def enter(self, parts: Parts, phase: Phase) -> None:
        """Note the phase of the step."""
        self.phase = phase
        if phase == "optimizer":
            self._before = _traces(parts)

    def end_step(self) -> None:
        """The step is made."""
        self.step += 1
        self.doing = ""

    def end_evaluation(self) -> None:
        """The evaluation is made."""
        self.evaluated = self.step
        self.doing = ""

    def cut_evaluation(self) -> None:
        """The evaluation was cut short, and is still to be made."""
        self.doing = ""

    def undo(self, parts: Parts) -> bool:
        """Undo what has begun; whether that is possible. Generators are left to `random`."""
        for parameter in (*parts.step.trainables.parameters, *parts.step.trainables.masters):
            parameter.grad = None
        if self.doing == "step" and self.phase == "optimizer" and not self._undo_optimizer(parts):
            return False
        if parts.step.scaling is not None and self._scaling is not None:
            parts.step.scaling.load(self._scaling)
        return True

    def _undo_optimizer(self, parts: Parts) -> bool:
        """Drop state that was only made, not used yet; whether nothing else was changed."""
        optimizer = parts.step.optimizer
        home = next(cls for cls in type(optimizer).__mro__ if "step" in vars(cls)).__module__
        if not f"{home}.".startswith(KNOWN_OPTIMIZERS):
            return False
        for master in parts.step.trainables.masters:
            before, now = self._before[id(master)], _trace(optimizer, master)
            if any(key in before and before[key] != now[key] for key in now):
                return False
            made = now.keys() - before.keys()
            if any(_was_used(optimizer.state[master][key]) for key in made):
                return False
        for master in parts.step.trainables.masters:
            if len(self._before[id(master)]) == 1:
                optimizer.state.pop(master, None)
        return True


def _traces(parts: Parts) -> dict[int, Mapping[str, object]]:
    return {id(master): _trace(parts.step.optimizer, master) for master in parts.step.trainables.masters}


def _trace(optimizer: torch.optim.Optimizer, master: Tensor) -> dict[str, object]:
    """What changes when the optimizer changes a master or its state: versions of tensors, and numbers."""
    found: dict[str, object] = {"": master._version}
    state: Any = optimizer.state
    if master in state:
        for key, value in state[master].items():
            found[key] = (id(value), value._version) if isinstance(value, Tensor) else value
    return found


def _was_used(value: object) -> bool:
    """Whether a piece of state is more than what it was made as: zeros, and steps counted from 0."""
    return value._version > 0 if isinstance(value, Tensor) else isinstance(value, int | float) and value != 0


def free_memory(device: torch.device) -> None:
    """Give back to the device what nothing refers to any more, and forget the peak."""
    gc.collect()
    if device.type == "cuda":
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


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
