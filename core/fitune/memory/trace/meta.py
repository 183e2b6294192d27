"""A model without values, on torch's meta device: its tensors have shapes, types and storages alone.

Fake tensors (`torch._subclasses.fake_tensor`) would do as well, give the same log, and take twice the time. On meta
the host's tensors stay real ones, so what is on the card and what is not can be told apart.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

DEVICE = torch.device("meta")


def tensors_of(model: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers, each once, in the order of modules, with what quantised ones keep beside them."""
    seen: set[int] = set()
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            for found in () if tensor is None else (tensor, *_beside(tensor)):
                if id(found) not in seen:
                    seen.add(id(found))
                    yield found


def _beside(value: object, depth: int = 3) -> Iterator[Tensor]:
    """Tensors in the attributes of a parameter, such as the scales of bitsandbytes' `QuantState`."""
    for attribute in getattr(value, "__dict__", {}).values():
        if isinstance(attribute, Tensor):
            yield attribute
        elif depth and hasattr(attribute, "__dict__") and not isinstance(attribute, (nn.Module, type)):
            yield from _beside(attribute, depth - 1)


def local(tensor: Tensor) -> Tensor:
    """Of a tensor that is spread over processes, this one's part; any other as it is."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor
