"""Where a run stands, and how what it was doing is undone, if memory runs out in its midst.

A step is undone by dropping its gradients and putting its random generators back: it changes nothing else before its
last part, the optimizer's. Where that has begun to change weights, or a strategy that takes gradients as they come, it
cannot be undone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fitune.checkpoint.state import RandomState, random_state
from fitune.compose.loss_scaling import ScalingState
from fitune.compose.parts import Parts
from fitune.compose.step import Phase

KNOWN_OPTIMIZERS = ("torch.optim.", "bitsandbytes.optim.")
"""Modules of optimizers that leave a trace, in tensors' versions or in their count of steps, of what they change."""


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
        if parts.step.trainables.are_owned:
            self._before = _traces(parts)

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
        parts.step.trainables.drop()
        if self.doing == "step" and parts.step.trainables.are_owned:
            if parts.step.trainables.changed():
                return False
            self._drop_what_was_made(parts)
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
        self._drop_what_was_made(parts)
        return True

    def _drop_what_was_made(self, parts: Parts) -> None:
        """Drop the state of masters that had none before."""
        for master in parts.step.trainables.masters:
            if len(self._before[id(master)]) == 1:
                parts.step.optimizer.state.pop(master, None)


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
