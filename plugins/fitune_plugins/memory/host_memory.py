"""Memory of the host that a GPU copies from and to by itself: page-locked, kept and used again."""

from __future__ import annotations

import mmap
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fitune import RunError

MEMINFO = Path("/proc/meminfo")


class HostMemory:
    """Blocks of host memory for one device, each used again once it is given back.

    Page-locking takes about half a second a GiB, so no block is let go of while it is large enough: there are as many
    as were in use at once, each no larger than the largest tensor that was asked for.
    """

    def __init__(self, device: torch.device, purpose: str) -> None:
        """For copies from and to this device; `purpose` names who asks, for messages."""
        self._device = device
        self._pins = device.type == "cuda"
        self._purpose = purpose
        self._free: list[Tensor] = []
        self.held = 0
        """Bytes of all blocks."""

    def take(self, size: int) -> Tensor:
        """A block of at least `size` bytes, uint8. Raises `RunError` if the host has no room for it."""
        fitting = [block for block in self._free if block.nbytes >= size]
        if fitting:
            found = min(fitting, key=lambda block: block.nbytes)
            self._free = [block for block in self._free if block is not found]
            return found
        if self._free:  # too small: the new one stands in its place
            if self._pins:
                torch.cuda.synchronize(self._device)  # it may still be copied from
            self.held -= self._free.pop().nbytes
        self._must_have_room(size)
        made = page_locked(size) if self._pins else torch.empty(size, dtype=torch.uint8)
        if made is None:
            raise self._no_room(size, "the driver refuses to page-lock it")
        self.held += size
        return made

    def give_back(self, block: Tensor) -> None:
        """Let a block be used again, once all copies are made that were begun before."""
        self._free.append(block)

    def _must_have_room(self, size: int) -> None:
        """The kernel would end the process, or another, rather than say no."""
        room = available()
        if room is not None and size > room:
            raise self._no_room(size, f"{room / 2**30:.2f} GiB are free")

    def _no_room(self, size: int, why: str) -> RunError:
        return RunError(
            f"{self._purpose}: {size / 2**30:.2f} GiB of host memory were asked for, beside {self.held / 2**30:.2f} "
            f"GiB that it has, but {why}. Free some, or remove the [[memory.strategy]]"
        )


def page_locked(size: int) -> Tensor | None:
    """So many bytes of page-locked host memory, exactly, where torch's own would be rounded up to a power of two.

    None where the driver refuses. The memory is the process' own once more when the tensor is gone.
    """
    block = torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8)  # pages of its own
    runtime: Any = torch.cuda.cudart()
    address = block.data_ptr()
    if runtime.cudaHostRegister(address, size, 0) != runtime.cudaError.success:
        return None
    weakref.finalize(block, runtime.cudaHostUnregister, address).atexit = False
    return block


def available() -> int | None:
    """Bytes of host memory that can be had without swapping; None where the kernel does not say."""
    try:
        lines = MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(found[0]) if found else None
