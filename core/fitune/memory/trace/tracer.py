"""Logs every block of memory that operations on tensors without values would take and give back on a GPU."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fitune.compose.step import Phase
from fitune.memory.kernels.gpu import Scratch
from fitune.memory.kernels.torch_version import lt_workspace
from fitune.memory.trace.flops import flops_of
from fitune.memory.trace.host_link import cross, crossing
from fitune.memory.trace.log import Block, Kind, MemoryLog
from fitune.memory.trace.meta import local
from fitune.memory.trace.modules import ModuleTracker
from fitune.memory.trace.outputs import AS_KERNEL, name_of
from fitune.memory.trace.step_time import Work
from fitune.memory.trace.values import ANSWERED, draws, is_bound
from fitune.plugin.strategy import times

CUBLAS: dict[str, Callable[[Sequence[Any]], bool]] = {
    **{f"aten.{name}.default": lambda args: False for name in ("mm", "bmm", "baddbmm", "addbmm", "mv", "addmv")},
    "aten.addmm.default": lambda args: True,
    "aten.addmm_.default": lambda args: False,
    "bitsandbytes.gemm_4bit.default": lambda args: len(args) > 6 and args[6] is not None,  # with a bias: addmm
}
"""Operations that take a cuBLAS handle, and with its first use on a thread its workspace; whether by cuBLASLt."""

ASKS = frozenset({"aten._local_scalar_dense.default", "aten.nonzero.default"})
"""Operations for whose result the host waits."""

COMPOSED = frozenset({"bitsandbytes.gemm_4bit.default"})
"""Operations that are made of others: what they take beside their results comes first (a weight, dequantised)."""

KINDS: dict[Phase, Kind] = {
    "load": "weights",
    "forward": "saved activations",
    "loss": "loss",
    "backward": "activation gradients",
    "gradients": "temporaries",
    "optimizer": "temporaries",
    "evaluation": "temporaries",
}
"""What a block is taken for, unless more is known of it."""


def without_values(tensor: Tensor) -> bool:
    """Whether a tensor stands for one on the card; others are on the host."""
    return tensor.is_meta


@dataclass(slots=True, kw_only=True)
class _Known:
    """A storage that was seen."""

    storage: weakref.ref[torch.UntypedStorage]
    number: int
    """Of its block; 0 while its memory is given back."""


class Tracer(TorchDispatchMode):
    """A dispatch mode that keeps a `MemoryLog` of the storages that it sees come and go."""

    def __init__(
        self,
        modules: ModuleTracker | None,
        *,
        scratch: dict[str, Scratch],
        cublas_workspace: int,
        on_card: Callable[[Tensor], bool] = without_values,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.log = MemoryLog()
        self.work = Work()
        """Of the last step that is traced."""
        self.last_step = -1
        """Its number."""
        self.flops = 0
        """Floating-point operations of training so far."""
        self.moved = 0
        """Bytes that training has copied between the card and the host so far, in both directions."""
        self.failing = ""
        """The operation that is running, or that has failed; empty between operations."""
        self.failed_in = ""
        """The module of the operation that has failed."""
        self.by_most = False
        """Whether a size that depends on values was taken for the most that it can be."""
        self.apart = False
        """Whether what is taken comes from the pool that CUDA graphs have to themselves, on a stream of its own."""
        self.waits = ""
        """The last operation on that stream whose result the host has asked for; empty before the first."""
        self.draws = self.again = False
        """Whether random numbers are drawn on that stream, and whether anything is computed anew."""
        self.modules = modules
        self.on_host = False
        """Whether tensors without values stand for those of the host for now: nothing is taken of the card."""
        self.stream = 0
        """The CUDA stream that memory is taken on; 0 is the one that computes."""
        self._on_card = on_card
        self._scratch = scratch
        self._workspace = cublas_workspace
        self._handles: set[tuple[bool, bool, bool]] = set()
        self._known: dict[int, _Known] = {}
        self._phase: Phase = "load"
        self._behind = False  # what follows is done once a step: gradients are gathered after each micro-batch
        self._step = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the guard against it would take a fifth of the time

    def enter(self, phase: Phase, step: int | None = None) -> None:
        """What follows belongs to this phase, of this step (or the one before)."""
        self._step = self._step if step is None else step
        self._behind = phase == "optimizer" or phase == self._phase == "gradients"
        self._phase = phase
        self.log.enter(phase, self._step)
        if self.modules is not None and phase in ("forward", "evaluation"):
            self.modules.start()

    def retag(self, tensors: Iterable[Tensor | None], kind: Kind) -> None:
        """Say what these tensors' memory is for."""
        for tensor in tensors:
            known = None if tensor is None else self._known.get(id(local(tensor).untyped_storage()))
            if known is not None and known.number:
                self.log.blocks[known.number - 1].kind = kind

    def adopt(self, tensor: Tensor) -> None:
        """Note the memory of a tensor that was made before."""
        if self._on_card(tensor):
            self._track(local(tensor), "load")

    def resized(self, tensor: Tensor) -> None:
        """Note that a tensor's storage has been given back, or taken again, while the tensor stays."""
        known = self._known.get(id(tensor.untyped_storage()))
        if known is None:
            return
        if known.number:
            self.log.give_back(known.number)
            known.number = 0
        if tensor.untyped_storage().nbytes():
            known.number = self._taken(tensor, "fsdp.alloc_storage")
            self.log.blocks[known.number - 1].kind = "gathered weights"

    def learn(self, operation: str, scratch: Scratch) -> None:
        """Know what an operation's kernel takes beside its results."""
        self._scratch[operation] = scratch

    def take(self, operation: str, sizes: Iterable[int]) -> None:
        """Note memory that a kernel takes beside its results, and gives back."""
        self._give_back(self._take_scratch(operation, sizes))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and note what it takes."""
        if types and any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it calls operations on its own part, which are noted
        self.failing = name = name_of(func)
        as_kernel = AS_KERNEL.get(name) or ANSWERED.get(name)
        crosses = crossing(name, args, kwargs or {})
        try:
            if crosses:
                results = cross(func, name, args, kwargs or {})
                moved = times() * results.nbytes if self._trains() else 0
                self.moved += moved
                self.work.moved += moved if self._step == self.last_step else 0
            elif as_kernel is None or not (isinstance(args[0], Tensor) and args[0].is_meta):
                results = func(*args, **(kwargs or {}))
            else:
                results = as_kernel(*args, **(kwargs or {}))
        except Exception:
            self.failed_in = "" if self.modules is None else self.modules.now()[0]
            raise
        self.failing = ""
        self.by_most |= name in ANSWERED and is_bound(name, args)
        if self.apart:
            if name in ASKS or (crosses and not self._on_card(results)):
                self.waits = name
            self.draws |= draws(func, args, kwargs or {})
        called = (0, 0) if self.modules is None else self.modules.take_calls()
        if self._trains():
            self.work.note_calls(*(called if self._step == self.last_step else (0, 0)))
            self._count(func, name, args, kwargs or {}, results)
        if not self.on_host:
            self._account(name, args, results)
        return results

    def _count(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], results: Any) -> None:
        """Note the operation's work."""
        flops = flops_of(func, name, args, kwargs, results)
        self.flops += times() * flops
        if self._step == self.last_step:
            phase = "optimizer" if self._behind else self._phase
            self.work.note(phase, func, name, args, results, flops, times())

    def _account(self, name: str, args: tuple[Any, ...], results: Any) -> None:
        """Note what the operation takes of the card: its results, its workspace, and what it gives back at its end."""
        scratch = self._scratch.get(name)
        sizes = () if scratch is None else scratch(args, results)
        held = self._take_scratch(name, sizes) if name in COMPOSED else {}
        for result in (results,) if isinstance(results, Tensor) else tree_leaves(results):
            if isinstance(result, Tensor) and self._on_card(result):
                self._track(result, name)
        lt = CUBLAS.get(name)
        if lt is not None:
            self._take_workspace(lt=lt(args))  # torch makes the result first
        if name not in COMPOSED:
            held = self._take_scratch(name, sizes)  # kernels take nearly all of it beside their results
        self._give_back(held)

    def _trains(self) -> bool:
        """Whether what is done now belongs to an optimizer step."""
        return self._phase not in ("load", "evaluation")

    def _track(self, tensor: Tensor, operation: str) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        known = self._known.get(key)
        if known is not None and known.storage() is storage:
            return

        def gone(_: object) -> None:
            if self._known.get(key) is noted:
                del self._known[key]
            if noted.number:
                self.log.give_back(noted.number)

        noted = _Known(storage=weakref.ref(storage, gone), number=self._taken(tensor, operation))
        self._known[key] = noted

    def _taken(self, tensor: Tensor, operation: str) -> int:
        """Note that this tensor's storage is taken; gives the number of its block."""
        block = self._block(tensor.untyped_storage().nbytes(), operation)
        block.shape, block.dtype = tuple(tensor.shape), str(tensor.dtype)[6:]
        if self.stream and block.phase != "load":
            block.kind = "communication"
        return self.log.take(block)

    def _block(self, size: int, operation: str) -> Block:
        phase, kind, module = self._phase, KINDS[self._phase], ""
        if self.modules is not None:
            module, in_head, again = self.modules.now()
            self.again |= again
            if phase == "loss" and not self.modules.in_head:  # a second forward pass of one loss
                self._phase = phase = "forward"
                self.log.enter("forward", self._step)
                kind = KINDS["forward"]
            if phase == "forward" and in_head:
                self._phase = phase = "loss"
                self.log.enter("loss", self._step)
                kind = "loss"
            elif phase == "backward":
                kind = "loss" if in_head else "recomputed activations" if again else kind
            elif phase == "evaluation" and in_head:
                kind = "loss"
        return Block(size, kind, phase, operation, module, step=self._step, apart=self.apart, stream=self.stream)

    def _take_scratch(self, operation: str, sizes: Iterable[int]) -> dict[int, None]:
        """Take what a kernel takes beside its results; gives what it still holds at its end."""
        taken: list[int] = []
        held: dict[int, None] = {}
        for size in sizes:
            if size < 0:
                number = taken[-size - 1]
                del held[number]
                self.log.give_back(number)
                continue
            block = self._block(size, operation)
            block.kind = "kernel scratch"
            number = self.log.take(block)
            taken.append(number)
            held[number] = None
        return held

    def _give_back(self, held: dict[int, None]) -> None:
        for number in reversed(held):
            self.log.give_back(number)

    def _take_workspace(self, *, lt: bool) -> None:
        """A handle's workspace on a stream is never given back; the backward pass has a thread, and so one, of its own.

        cuBLASLt has one of its own, or shares it.
        """
        size = lt_workspace() if lt else 0
        in_backward = torch._C._current_autograd_node() is not None  # also where a loss takes gradients by itself
        handle = (in_backward, size > 0, self.apart)
        if handle not in self._handles:
            self._handles.add(handle)
            block = self._block(size or self._workspace, "cuBLASLt" if size else "cuBLAS")
            block.kind = "cuBLAS workspace"
            self.log.take(block)
