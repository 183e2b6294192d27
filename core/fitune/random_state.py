"""The random generators of a run, kept and put back."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomState:
    """Where the generators stand that a step may draw from; each process has its own."""

    python: Any
    numpy: Any
    torch: Tensor
    cuda: Tensor | None
    """Of the run's GPU; None on other devices."""


def random_state(device: torch.device) -> RandomState:
    """The state of Python's, NumPy's and torch's generators; it waits for no device."""
    return RandomState(
        python=random.getstate(),
        numpy=np.random.get_state(),
        torch=torch.get_rng_state(),
        cuda=torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    )


def set_random_state(state: RandomState, device: torch.device) -> None:
    """Put the generators back to where they stood."""
    random.setstate(state.python)
    np.random.set_state(state.numpy)
    torch.set_rng_state(state.torch)
    if state.cuda is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state.cuda, device)
