"""A model without values, on torch's meta device: its tensors have shapes, types and storages alone.

Fake tensors (`torch._subclasses.fake_tensor`) would do as well, give the same log, and take twice the time. On meta
the host's tensors stay real ones, so what is on the card and what is not can be told apart.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import cast

import torch
from torch import Tensor, nn

DEVICE = torch.device("meta")


def tensors_of(model: nn.Module) -> Iterator[tuple[dict[str, Tensor | None], str, Tensor]]:
    """Parameters and buffers, one for each place: (the module's own dictionary, key, tensor)."""
    for module in model.modules():
        for home in (module._parameters, module._buffers):
            for key, tensor in home.items():
                if tensor is not None:
                    yield cast("dict[str, Tensor | None]", home), key, tensor


def make_anew(model: nn.Module, tensors: Collection[int]) -> None:
    """Make these tensors of the model (by `id`) anew, in the model's order, those shared in several places as one.

    (`Module.to_empty` would break such ties, and make all of them.)
    """
    made: dict[int, Tensor] = {}
    for home, key, tensor in list(tensors_of(model)):
        if id(tensor) not in tensors:
            continue
        if id(tensor) not in made:
            empty = torch.empty_like(tensor, device=DEVICE, requires_grad=False)
            is_parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad) if is_parameter else empty
        home[key] = made[id(tensor)]
