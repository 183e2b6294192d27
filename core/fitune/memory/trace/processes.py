"""Several processes in a forecast: one of them is traced, as if the others were there.

torch's own `fully_shard` and collectives run, in a process group that sends nothing (torch's "fake" backend), so what
they allocate is what they would allocate. On meta tensors they are only told what a GPU would tell them: streams, of
which each has free memory of its own, and storages that are given back and taken again while their tensors stay.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fitune.compose import optimizer
from fitune.memory.trace.meta import DEVICE
from fitune.memory.trace.patches import replaced

if TYPE_CHECKING:
    from fitune.memory.trace.tracer import Tracer

FIRST = 2**20
"""Number that the group of a forecast has in its name: those of a run that is at work count from 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """What a step asks of an `Accelerator`."""

    num_processes: int


@contextlib.contextmanager
def as_processes(count: int) -> Iterator[None]:
    """The first of so many processes, whose collectives send nothing; one that is at work in a real group is back in
    it afterwards. Nothing is done for one process, or within another of these.
    """
    import torch.distributed as dist

    if count == 1 or (dist.is_initialized() and dist.get_backend() == "fake" and dist.get_world_size() == count):
        yield
        return
    import torch.distributed.distributed_c10d as c10d
    from torch.testing._internal.distributed.fake_pg import FakeStore

    hook, apart = sys.excepthook, _world(c10d)
    with replaced(c10d, "_world", apart), replaced(c10d, "_backend", None), _same_rank(c10d):
        dist.init_process_group("fake", rank=0, world_size=count, store=FakeStore())
        sys.excepthook = hook  # torch puts "[rank0]" before every error from there on
        try:
            yield
        finally:
            for name in apart.pg_names.values():
                torch._C._distributed_c10d._unregister_process_group(name)


@contextlib.contextmanager
def _same_rank(c10d: ModuleType) -> Iterator[None]:
    """Have torch know afterwards which process this was before."""
    try:
        yield
    finally:
        before = c10d._world.default_pg
        torch._C._distributed_c10d._set_global_rank(-1 if before is None else before.rank())


def _world(c10d: Any) -> Any:
    """What torch knows of process groups, with none in it."""

    class World(c10d._World):  # type: ignore[misc]
        pg_map: Any = None
        pg_names: Any = None
        pg_group_ranks: Any = None
        pg_backend_config: Any = None
        tags_to_pg: Any = None
        pg_to_tag: Any = None
        group_count = FIRST

    world = World()
    for name in ("pg_map", "pg_names", "pg_group_ranks", "pg_backend_config", "tags_to_pg", "pg_to_tag"):
        setattr(world, name, {})
    return world


class _Event:
    """Stands for a CUDA event: in a trace, everything has happened."""

    def record(self, stream: object = None) -> None:
        """Nothing to note."""

    def wait(self, stream: object = None) -> None:
        """Nothing to wait for."""

    def synchronize(self) -> None:
        """Nothing to wait for."""


class _Stream:
    """Stands for a CUDA stream, whose memory the allocator keeps apart: `number` says which."""

    def __init__(self, number: int) -> None:
        self.number = number

    def wait_stream(self, other: object) -> None:
        """Nothing to wait for."""

    def wait_event(self, event: object) -> None:
        """Nothing to wait for."""

    def record_event(self, event: object = None) -> _Event:
        """One that has happened."""
        return _Event()


class _Device:
    """Stands for `torch.cuda` where FSDP asks for streams; tells a tracer which one is the current."""

    Event = _Event

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._streams = [_Stream(0)]

    def Stream(self, priority: int = 0) -> _Stream:  # noqa: N802 - torch's name
        """One more."""
        self._streams.append(_Stream(len(self._streams)))
        return self._streams[-1]

    def current_stream(self) -> _Stream:
        """The one on which memory is taken now."""
        return self._streams[self._tracer.stream]

    @contextlib.contextmanager
    def stream(self, stream: _Stream) -> Iterator[None]:
        """Take memory on this one for a while."""
        before, self._tracer.stream = self._tracer.stream, stream.number
        try:
            yield
        finally:
            self._tracer.stream = before


@contextlib.contextmanager
def as_sharded(tracer: Tracer, device: torch.device = DEVICE) -> Iterator[None]:
    """FSDP as it works on a GPU, on tensors of this device, what it takes and gives back noted by a tracer."""
    import torch.distributed.fsdp._fully_shard as package

    found = [
        importlib.import_module(f"{package.__name__}.{one.name}") for one in pkgutil.iter_modules(package.__path__)
    ]
    handle = _Device(tracer)

    def moved(parameters: Any, buffers: Any, to: torch.device) -> None:
        for tensor in (*parameters, *buffers):
            tracer.adopt(tensor)

    def resize(tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        if storage.size() != size:
            storage.resize_(size)
            tracer.resized(tensor)

    values = {
        "_get_device_handle": lambda kind: handle,
        "_get_device_from_mesh": lambda mesh: device,
        "_move_states_to_device": moved,
        "alloc_storage": lambda tensor: resize(tensor, tensor.numel() * tensor.itemsize),
        "free_storage": lambda tensor: resize(tensor, 0),
    }
    group = importlib.import_module(f"{package.__name__}._fsdp_param_group").FSDPParamGroup
    parameter = importlib.import_module(f"{package.__name__}._fsdp_param").FSDPParam
    make = parameter.init_all_gather_outputs

    def made(one: Any, *given: Any, **named: Any) -> None:
        make(one, *given, **named)
        tracer.retag(one.all_gather_outputs, "gathered weights")

    with contextlib.ExitStack() as stack:
        for module in found:
            for name, value in values.items():
                stack.enter_context(replaced(module, name, value))
        stack.enter_context(replaced(group, "_validate_no_meta_params", lambda self: None))
        stack.enter_context(replaced(parameter, "init_all_gather_outputs", made))
        stack.enter_context(replaced(optimizer, "device_of_group", lambda: device))
        yield
