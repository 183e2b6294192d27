"""What modules change in themselves while they compute, beside what trains: buffers, and plain attributes.

Running statistics are such buffers. Rotary embeddings that adapt to the longest row so far ("dynamic" and "longrope"
in transformers) have both: their frequencies, and the length that these are for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Plain = bool | int | float | str | None

LARGEST = 16 * 2**20
"""Bytes of a buffer that is looked at: larger ones are weights that some loaders keep as buffers, and are frozen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleState:
    """By (name of the module, name of the attribute or buffer); tensors are on the host."""

    values: Mapping[tuple[str, str], Plain]
    buffers: Mapping[tuple[str, str], Tensor]


def module_state(model: nn.Module) -> ModuleState:
    """The plain attributes and the buffers of every module of a model."""
    values: dict[tuple[str, str], Plain] = {}
    buffers: dict[tuple[str, str], Tensor] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if value is None or isinstance(value, bool | int | float | str):
                values[name, key] = value
        for key, buffer in module._buffers.items():
            if buffer is not None and buffer.nbytes <= LARGEST:
                buffers[name, key] = buffer.detach().to("cpu", copy=True)
    return ModuleState(values=values, buffers=buffers)


def changed(before: ModuleState, now: ModuleState) -> ModuleState:
    """What of `now` differs from `before`."""
    new = object()
    return ModuleState(
        values={key: value for key, value in now.values.items() if before.values.get(key, new) != value},
        buffers={key: value for key, value in now.buffers.items() if not _equal(before.buffers.get(key), value)},
    )


def set_module_state(model: nn.Module, state: ModuleState) -> None:
    """Give the modules these attributes and buffers, where they have them and differ; others stay as they are."""
    modules = dict(model.named_modules())
    for (name, key), value in state.values.items():
        module = modules.get(name)
        if module is not None and key in vars(module) and vars(module)[key] != value:
            module.__dict__[key] = value
    for (name, key), kept in state.buffers.items():
        module = modules.get(name)
        now = None if module is None else module._buffers.get(key)
        if module is not None and now is not None and not _equal(now, kept):
            module._buffers[key] = kept.to(now.device, copy=True)  # a new one: the old may be another buffer too


def _equal(one: Tensor | None, other: Tensor) -> bool:
    if one is None or one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one.to(other.device), other)
