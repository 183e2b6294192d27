"""Weights of which each process has a part: torch's DTensors, split along their first axis.

`torch.distributed.tensor` takes part of a second to import, and no run of one process needs it: a tensor can be one
only where it was imported already.
"""

from __future__ import annotations

import contextlib
import mmap
import sys
from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

PIECE = 16 * 2**20
"""Elements of each process' part that are gathered at a time: bounds what this takes to 64 MiB a process."""


def is_sharded(tensor: object) -> bool:
    """Whether this process has but a part of it."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """What this process has of it."""
    return cast(Tensor, cast(Any, tensor).to_local()) if is_sharded(tensor) else tensor


def group_of(tensor: Tensor) -> dist.ProcessGroup:
    """The processes that share it out among them."""
    return cast(dist.ProcessGroup, cast(Any, tensor).device_mesh.get_group())


def device_of_group() -> torch.device:
    """Where a tensor must be to be sent to the other processes."""
    cuda = "nccl" in dist.get_backend()
    return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")


def own_rows(tensor: Tensor) -> slice:
    """The rows of a shared out tensor that this process has; the last processes may have fewer, or none."""
    rows, group = tensor.shape[0], group_of(tensor)
    size, rank = -(-rows // group.size()), group.rank()
    return slice(min(rank * size, rows), min((rank + 1) * size, rows))


def cut(kept: Tensor, tensor: Tensor) -> Tensor:
    """This process' rows of a tensor that is whole, where `tensor` is shared out; else all of it."""
    return kept[own_rows(tensor)] if is_sharded(tensor) and kept.shape == tensor.shape else kept


def picked(tensor: Tensor, places: Tensor) -> Tensor:
    """Single elements of a tensor, by their places among all; where it is shared out every process must ask."""
    if not is_sharded(tensor):
        return tensor.detach().reshape(-1)[places.to(tensor.device)]
    part, row = local(tensor.detach()), tensor.shape[1:].numel()
    first = places - own_rows(tensor).start * row
    here = (first >= 0) & (first < part.numel())
    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[part.element_size()]
    found = torch.zeros(len(places), dtype=torch.int64)
    found[here] = part.reshape(-1)[first[here].to(part.device)].view(bits).cpu().long()  # a sum would lose signs of 0
    found = found.to(device_of_group())
    dist.all_reduce(found, group=group_of(tensor))
    return found.to(bits).view(part.dtype)


def give_room(model: nn.Module) -> None:
    """Give tensors on meta zeros on the host, in place of values that another process has, which take no memory until
    they are written to. Tied ones stay so.
    """
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for module in model.modules():
        for place in (module._parameters, module._buffers, vars(module)):
            tensors = cast("dict[str, Any]", place)
            for name, tensor in list(tensors.items()):
                if not isinstance(tensor, Tensor) or not tensor.is_meta:
                    continue
                if id(tensor) not in found:
                    room = unwritten(tensor)
                    if isinstance(tensor, nn.Parameter):
                        room = nn.Parameter(room, requires_grad=tensor.requires_grad)
                    found[id(tensor)] = (tensor, room)  # the first too, so that its number stays its own
                tensors[name] = found[id(tensor)][1]


def unwritten(tensor: Tensor) -> Tensor:
    """Zeros on the host of a tensor's shape and type, in memory that the system gives as it is written to.

    `torch.zeros` writes them: of a large model each process of a host would hold a copy.
    """
    size = tensor.numel() * tensor.element_size()
    if size == 0 or not tensor.is_contiguous():
        return torch.zeros_like(tensor, device="cpu")
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    return torch.frombuffer(mmap.mmap(-1, size, **private), dtype=torch.uint8).view(tensor.dtype).view(tensor.shape)


@contextlib.contextmanager
def put_together(model: nn.Module, kind: torch.dtype | None) -> Iterator[None]:
    """While this lasts, weights that train and are shared out are whole in the model of the first process, of a type
    and on its host, to be written. Every process must call it, and none may compute meanwhile.
    """
    places = [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None and parameter.requires_grad and is_sharded(parameter)
    ]
    found: dict[int, nn.Parameter] = {}  # tied ones are one
    try:
        for module, name, parameter in places:
            if id(parameter) not in found:
                tensor = whole(local(parameter), parameter)
                found[id(parameter)] = (
                    parameter if tensor is None else nn.Parameter(tensor.to(kind or tensor.dtype), requires_grad=True)
                )
            module._parameters[name] = found[id(parameter)]
        yield
    finally:
        for module, name, parameter in places:
            module._parameters[name] = parameter


def whole(part: Tensor, of: Tensor) -> Tensor | None:
    """A tensor of the shape of `of`, which is shared out, from the parts that processes have: on the host of the first,
    None in others. Every process must call it.
    """
    group = group_of(of)
    row = of.shape[1:].numel()
    size = -(-of.shape[0] // group.size()) * row
    flat = torch.nn.functional.pad(part.detach().reshape(-1), (0, size - part.numel()))
    device = device_of_group()
    found = torch.empty(group.size(), size, dtype=part.dtype) if group.rank() == 0 else None
    for start in range(0, size, PIECE):
        piece = flat[start : start + PIECE].to(device)
        every = torch.empty(group.size() * piece.numel(), dtype=part.dtype, device=device)
        dist.all_gather_into_tensor(every, piece.contiguous(), group=group)
        if found is not None:
            found[:, start : start + piece.numel()] = every.view(group.size(), -1)
    return None if found is None else found.view(-1)[: of.numel()].view(of.shape)
