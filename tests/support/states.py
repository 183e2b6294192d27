"""What a run has learnt, and that two have learnt the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fitune.checkpoint.state import copied
from fitune.compose.parts import Parts

CASES: dict[str, list[str]] = {
    "plain": [],
    "dropout": ["adapter.dropout=0.3"],
    "bfloat16": ['model.dtype="bfloat16"'],
    "float16": ['model.dtype="float16"'],
    "no masters": ['model.dtype="bfloat16"', "train.master_weights=false"],
    "full": ['adapter={use="none"}'],
    "8 bits": ['adapter={use="none"}', 'memory.strategy=[{use="adamw-8bit"}]'],
    "adafactor": ['memory.strategy=[{use="adafactor"}]'],
    "lion": ['memory.strategy=[{use="lion", state="bfloat16"}]'],
    "muon": ['adapter={use="none"}', 'memory.strategy=[{use="muon"}]'],
    "schedule-free": ['memory.strategy=[{use="schedule-free"}]', 'train.schedule="constant"'],
    "step in backward": [
        'adapter={use="none"}',
        'memory.strategy=[{use="step-in-backward"}]',
        "train.max_grad_norm=0",
    ],
    "accumulation": ['memory.strategy=[{use="accumulation", steps=2}]', "train.micro_batch=1"],
    "warm-up": ["train.warmup_steps=3", 'train.schedule="linear"'],
}


def values_of(parts: Parts) -> list[Tensor]:
    """All that a run has learnt: parameters, masters, the optimizer's state."""
    state = copied(parts.step.optimizer.state_dict())["state"]
    trainables = parts.step.trainables
    return [p.detach().clone() for p in (*trainables.parameters, *trainables.masters)] + tensors(state)


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    """All tensors must be equal to the bit."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def tensors(value: Any) -> list[Tensor]:
    """Those in it, however deep."""
    if isinstance(value, Tensor):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for one in inner for tensor in tensors(one)]
