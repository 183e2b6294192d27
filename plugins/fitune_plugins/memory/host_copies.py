"""Tensors that leave the card for the host's memory and come back, beside what the card computes.

Copies are made on a CUDA stream of their own. No memory of the card is handed from stream to stream behind the
allocator's back (`Tensor.record_stream`), which would make it depend on timing when memory is free again: every tensor
is allocated and freed on the stream that computes, and that one waits before it frees what is being copied. So a
forecast, where the same code runs without streams, sees what the card will see.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from fitune_plugins.memory.host_memory import HostMemory


class HostCopies:
    """Sends tensors of one device to the host."""

    def __init__(self, device: torch.device, purpose: str) -> None:
        """For this device; `purpose` names who asks, for messages."""
        self.memory = HostMemory(device, purpose)
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def send(self, tensor: Tensor) -> HostCopy:
        """Begin to copy a tensor to the host. Raises `RunError` if there is no room for it."""
        return HostCopy(self, tensor.detach().contiguous())

    def beside(self, target: Tensor, source: Tensor) -> torch.cuda.Event | None:
        """Copy after all that the card has been told to do so far, beside what comes; gives the copy's end."""
        if self._stream is None:
            target.copy_(source)
            return None
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            return cast("torch.cuda.Event", self._stream.record_event())

    def wait(self, end: torch.cuda.Event | None) -> None:
        """Let the card compute no further before this copy is made; the host does not wait."""
        if end is not None:
            torch.cuda.current_stream(self.device).wait_event(end)


class HostCopy:
    """A tensor on the host. Its host memory is used again once this object is gone."""

    def __init__(self, copies: HostCopies, tensor: Tensor) -> None:
        """Begin to copy `tensor`, which is kept on the card until `leave`."""
        self._copies = copies
        self._shape, self._dtype = tensor.shape, tensor.dtype
        self._block: Tensor | None = None
        self._tensor: Tensor | None = tensor
        self._end: torch.cuda.Event | None = None
        if tensor.is_meta:
            self._host = tensor.to("cpu")
        else:
            self._block = copies.memory.take(tensor.nbytes)
            self._host = self._block[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            self._end = copies.beside(self._host, tensor)

    def leave(self) -> None:
        """Let go of the tensor on the card, as soon as the card has made the copy."""
        self._copies.wait(self._end)
        self._tensor = self._end = None

    def fetch(self) -> None:
        """Begin to bring the tensor back, if it is not on the card."""
        if self._tensor is None:
            self._tensor = torch.empty(self._shape, dtype=self._dtype, device=self._copies.device)
            self._end = self._copies.beside(self._tensor, self._host)

    def take(self) -> Tensor:
        """The tensor on the card; it is let go of here."""
        self.fetch()
        tensor = cast(Tensor, self._tensor)
        self.leave()
        return tensor

    def __del__(self) -> None:
        """An error may have left a copy that nobody waited for: its memory on the card is not to be used before."""
        if getattr(self, "_block", None) is not None:
            if self._tensor is not None:
                self.leave()
            self._copies.memory.give_back(cast(Tensor, self._block))
