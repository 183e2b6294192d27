"""What comes to the devices of all processes before it is sharded, a unit at a time: from one host, or from each.

Weights that lie in files which are mapped into memory (safetensors) are not read before they are needed. Where every
process has them so, each reads the rows alone that it will have, all of them at once, and sends these to the others:
no host holds more than what is on its way, and a disk, or as many as there are, is read as fast as it can be.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast
from weakref import WeakValueDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from fitune import mapped_weights

READERS = 4
"""Threads of a process that read: one waits for the system at every few pages."""


class Filler:
    """Gives each process the same on its device, unit by unit: of each tensor what the first one has, or of each row
    what the one that will keep it has read.
    """

    def __init__(self, model: nn.Module, device: str) -> None:
        """`device` is the type of all processes' devices. Every process must make one, of the same model."""
        cuda = device == "cuda"
        self.device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
        self._done = WeakValueDictionary[int, Tensor]()
        """By their numbers: weights may be tied. What was sharded goes, and must not be kept by this."""
        self._by_rows = _mapped_in_all(model)
        self._read: dict[int, Future[Tensor]] = {}
        self._free = defaultdict[tuple[int, torch.dtype], list[Tensor]](list)

    def fill(self, units: Sequence[nn.Module]) -> Iterator[nn.Module]:
        """Each unit, once what was not filled yet of its parameters, buffers and other tensors is; while whoever asked
        is at work with it and the next is on its way, the one behind that is read.
        """
        with ThreadPoolExecutor(READERS) as pool:
            for at, unit in enumerate(units):
                for coming in units[at : at + 2]:
                    self._begin(coming, pool)
                self._fill(unit)
                yield unit

    def _fill(self, unit: nn.Module) -> None:
        for tensor in list(self._left(unit)):
            self._done[id(tensor)] = tensor
            tensor.data = self._gathered(tensor) if self._is_by_rows(tensor) else self._of_first(tensor)

    def _begin(self, unit: nn.Module, pool: ThreadPoolExecutor) -> None:
        """Have this process' rows of what lies in files read."""
        for tensor in self._left(unit):
            if self._is_by_rows(tensor) and id(tensor) not in self._read:
                own = tensor.data[_rows(len(tensor))[dist.get_rank()]]
                self._read[id(tensor)] = pool.submit(self._room(own).copy_, own)

    def _room(self, rows: Tensor) -> Tensor:
        """Room for these on the host, which was of use before if it can be: the system gives new one page by page."""
        free = self._free[rows.numel(), rows.dtype]
        return free.pop().view(rows.shape) if free else torch.empty_like(rows)

    def _left(self, unit: nn.Module) -> Iterator[Tensor]:
        """Tensors of a unit that are not filled yet, each once."""
        found = dict[int, Tensor]()
        for module in unit.modules():
            for place in (module._parameters, module._buffers, vars(module)):
                for tensor in cast("dict[str, Any]", place).values():
                    if isinstance(tensor, Tensor) and not isinstance(tensor, DTensor):
                        found[id(tensor)] = tensor
        return (tensor for number, tensor in found.items() if self._done.get(number) is not tensor)

    def _is_by_rows(self, tensor: Tensor) -> bool:
        return self._by_rows.get(id(tensor)) is tensor

    def _gathered(self, tensor: Tensor) -> Tensor:
        """The whole of it, on the device, each row from the process that will keep it."""
        whole = torch.empty_like(tensor.data, device=self.device)
        parts = _rows(len(whole))
        own = self._read.pop(id(tensor)).result()
        whole[parts[dist.get_rank()]] = own
        self._free[own.numel(), own.dtype].append(own)
        for rank, rows in enumerate(parts):
            if rows.start < rows.stop:
                dist.broadcast(whole[rows], src=rank)
        return whole

    def _of_first(self, tensor: Tensor) -> Tensor:
        """What the first process has of it, on the device, laid out as here."""
        first = dist.get_rank() == 0
        data = tensor.data.to(self.device) if first else torch.empty_like(tensor.data, device=self.device)
        dense = data.contiguous()
        dist.broadcast(dense, src=0)
        if dense.data_ptr() != data.data_ptr():
            data.copy_(dense)
        return data


def _rows(count: int) -> list[slice]:
    """The rows that each process will keep: the last ones may have fewer, or none."""
    processes = dist.get_world_size()
    size = -(-count // processes)
    return [slice(min(rank * size, count), min((rank + 1) * size, count)) for rank in range(processes)]


def _mapped_in_all(model: nn.Module) -> WeakValueDictionary[int, Tensor]:
    """The weights that lie in mapped files in every process, by their numbers, and have rows."""
    own = mapped_weights(model)
    every: list[Iterable[str]] = [()] * dist.get_world_size()
    dist.all_gather_object(every, sorted(own))
    common = own.intersection(*every)
    named = {name: p for name, p in model.named_parameters() if name in common and p.dim()}
    return WeakValueDictionary({id(parameter): parameter for parameter in named.values()})
