"""What records micro-batches as CUDA graphs and replays them: the pool of memory, the stream, and what may go wrong.

https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fitune.errors import described
from fitune.plugin.strategy import CannotRecord, Plan, Recorder

WAITS = "called a synchronizing CUDA operation"
"""What torch says of an operation that waits for the device (`torch.cuda.set_sync_debug_mode`)."""

NO_GPU = "it needs an NVIDIA GPU"

OF_ITSELF = "Synchronization debug mode is a prototype"
"""What torch says, once, as it is asked to say that."""

OF_ONE_LOSS = 512
"""Bytes that the allocator takes for a scalar."""

Place: TypeAlias = tuple[Mapping[str, Tensor | None], str, Tensor, int]
"""Where a module keeps a tensor, under which name, the tensor, and its address."""


class NoRecorder:
    """Of a run in which nothing can be recorded."""

    def __init__(self, refused: str = NO_GPU) -> None:
        self.refused = refused
        self.device = torch.device("cpu")
        self.pin_memory = self.more_targets = False
        self.length = self.step = 0
        self.against = ""
        self.said: list[str] = []
        """What the user is to be told, and was not yet."""

    def apart(self, compute: Callable[[], Tensor]) -> Tensor:
        """Compute, as if nobody had asked."""
        return compute()

    def record(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Raise `CannotRecord`."""
        raise CannotRecord(self.refused)

    def make_room(self) -> None:
        """Do nothing."""

    def is_as_recorded(self) -> bool:
        """Nothing was recorded."""
        return True

    def close(self) -> None:
        """Do nothing."""


def recorder_for(model: nn.Module, device: torch.device, plan: Plan, *, length: int) -> Recorder:
    """What a run on this device records with; rows have `length` tokens at most."""
    why = why_not(plan, gpu=device.type == "cuda")
    if why:
        return NoRecorder(why)
    return CudaRecorder(model, device, length=length, pin_memory=plan.pin_memory, more_targets=takes_more_targets(plan))


def why_not(plan: Plan, *, gpu: bool) -> str:
    """Why nothing can be recorded in a run with this plan; empty where it can."""
    return plan.unrecorded if gpu else NO_GPU


def takes_more_targets(plan: Plan) -> bool:
    """Whether a plan's loss takes a batch that says more targets than it has."""
    return plan.more_targets or plan.loss is None


class CudaRecorder(NoRecorder):
    """Computes on a stream of its own with a pool of its own, which all that it records shares.

    What is recorded is one launch for the host, and takes its memory from where it was when it was recorded. That is
    free then: whatever else takes memory of the pool gives it back before it returns, or recordings are dropped.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        *,
        length: int,
        pin_memory: bool = False,
        more_targets: bool = False,
    ) -> None:
        """`length` and what follows are as `fitune.Recorder` has them."""
        super().__init__("")
        self.index = torch.cuda.current_device() if device.index is None else device.index
        self.device = torch.device("cuda", self.index)
        self.length, self.pin_memory, self.more_targets = length, pin_memory, more_targets
        self.model = model
        self._pool: Any = None
        self._release: Callable[[], object] = _nothing
        self._stream: Any = None
        self._unended: list[Any] = []
        """Graphs whose recording torch could not end."""
        self._tensors: list[Place] = []
        """Where all tensors of the model were when something was last recorded; empty while nothing is."""
        self._stale = False
        self._draws = self._asked = False
        self._told: dict[str | tuple[str, type[Warning], int], int] = {}

    def apart(self, compute: Callable[[], Tensor]) -> Tensor:
        """Compute in the pool, watched: `against` says what was seen."""
        pool, stream = self._open()
        now, generator = torch.cuda.current_stream(self.index), torch.cuda.default_generators[self.index]
        stream.wait_stream(now)
        before = torch.cuda.memory_allocated(self.index) if self._tensors else 0
        drawn, self._asked = generator.get_offset(), False
        with self._watched() as seen, torch.cuda.stream(stream), _from_pool(self.index, pool):
            loss = compute()
        now.wait_stream(stream)
        self._draws = self._draws or generator.get_offset() != drawn
        self.against = seen[0] if seen else ""
        if self._draws and self._asked:
            self.against = "it draws random numbers, and the same ones again where it computes layers anew"
        if self._tensors and torch.cuda.memory_allocated(self.index) > before + OF_ONE_LOSS:
            self._tensors = []  # what stays may lie where a recording writes: nothing is as it was recorded
            self._stale = True
        return loss

    def record(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Record what was computed in the pool before; gives what replays it. Raises `CannotRecord`."""
        pool, stream = self._open()
        now, generator = torch.cuda.current_stream(self.index), torch.cuda.default_generators[self.index]
        graph, state = torch.cuda.CUDAGraph(), generator.get_state()
        graph.register_generator_state(generator)
        failed: list[Exception] = []
        loss: Tensor
        try:
            # Relaxed, for kernels may be loaded, and other threads ask for events; what waits is refused all the same.
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="relaxed"):
                try:
                    with contextlib.nullcontext() if self._draws else _none_drawn():
                        loss = compute()
                except Exception as error:
                    failed.append(error)
                    raise
        except Exception as error:
            self._mend(now, state, graph)
            cause = failed[0] if failed else error
            if isinstance(cause, torch.OutOfMemoryError):
                raise cause from None
            raise CannotRecord(described(cause)) from cause
        self._tensors = _places(self.model)
        self._stale = False

        def replay() -> Tensor:
            graph.replay()
            return loss

        return replay

    def make_room(self) -> None:
        """Give back to the device what the allocator keeps."""
        torch.cuda.empty_cache()

    def is_as_recorded(self) -> bool:
        """Whether parameters and buffers are the same tensors, at the same places, and nothing new is in the pool."""
        return not self._stale and all(
            home.get(name) is tensor and tensor.data_ptr() == address for home, name, tensor, address in self._tensors
        )

    def close(self) -> None:
        """Give up the pool, and give back to the device what was in it."""
        torch.cuda.synchronize(self.index)
        self._release()
        self._pool, self._tensors, self._stale = None, [], False
        torch.cuda.empty_cache()

    def _open(self) -> tuple[Any, Any]:
        if self._stream is None:
            self._stream = torch.cuda.Stream(self.index)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
            # Held by this one use, which ends at `close`, or with this object. torch has no pool for a stream that is
            # the default one.
            with torch.cuda.stream(self._stream):
                torch._C._cuda_beginAllocateCurrentStreamToPool(self.index, self._pool)
            torch._C._cuda_endAllocateToPool(self.index, self._pool)
            release = weakref.finalize(self, torch._C._cuda_releasePool, self.index, self._pool)
            release.atexit = False
            self._release = release
        return self._pool, self._stream

    @contextlib.contextmanager
    def _watched(self) -> Iterator[list[str]]:
        """Collects what waits for the device, and notes whether somebody asks where random numbers stand."""
        seen: list[str] = []
        before, look = torch.cuda.get_sync_debug_mode(), torch.cuda.get_rng_state

        def asked(*given: Any, **named: Any) -> Tensor:
            self._asked = True
            return look(*given, **named)

        with warnings.catch_warnings(record=True) as said, _replaced("get_rng_state", asked):
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield seen
            finally:
                torch.cuda.set_sync_debug_mode(before)
        for one in said:
            if WAITS in str(one.message):
                where = f"{one.filename.rpartition('/')[2]}, line {one.lineno}"
                seen.append(f"the host waits for the GPU in the midst of it ({where})")
            elif OF_ITSELF not in str(one.message):
                warnings.warn_explicit(str(one.message), one.category, one.filename, one.lineno, registry=self._told)

    def _mend(self, now: Any, state: Tensor, graph: Any) -> None:
        """Leave nothing of a recording that failed: torch may leave its stream, its pool and its generator as they were
        in the midst of it.
        """
        torch.cuda.set_stream(now)
        try:
            torch._C._cuda_endAllocateToPool(self.index, self._pool)
        except RuntimeError:
            pass  # torch has ended it
        else:
            torch._C._cuda_releasePool(self.index, self._pool)
            self._retire(graph)
        fresh = torch.Generator(device=self.device)
        fresh.set_state(state)
        torch.cuda.default_generators[self.index].graphsafe_set_state(fresh)

    def _retire(self, graph: Any) -> None:
        """Go on with another pool: to torch's allocator of pinned memory this one is being recorded to for ever, which
        nothing ends, and it asks the graph about itself at each later recording.
        """
        self._unended.append(graph)
        self._release()
        self._pool, self._release = None, _nothing


def _nothing() -> None:
    """Where there is no pool to be released."""


@contextlib.contextmanager
def _from_pool(index: int, pool: Any) -> Iterator[None]:
    """Whatever the current stream takes comes from the pool, in the backward pass's thread too, which
    `torch.cuda.use_mem_pool` would leave out.
    """
    torch._C._cuda_beginAllocateCurrentStreamToPool(index, pool)
    try:
        yield
    finally:
        torch._C._cuda_endAllocateToPool(index, pool)
        torch._C._cuda_releasePool(index, pool)


@contextlib.contextmanager
def _none_drawn() -> Iterator[None]:
    """Where no random number is drawn, nobody need know where the generator stands, which is not known in a recording:
    `torch.utils.checkpoint` asks before each layer.
    """
    nothing = torch.empty(0, dtype=torch.uint8, device="cpu")
    with (
        _replaced("get_rng_state", lambda *given, **named: nothing),
        _replaced("set_rng_state", lambda *given, **named: None),
    ):
        yield


@contextlib.contextmanager
def _replaced(name: str, value: Callable[..., Any]) -> Iterator[None]:
    """A function of `torch.cuda` that is another one for a while."""
    before = getattr(torch.cuda, name)
    setattr(torch.cuda, name, value)
    try:
        yield
    finally:
        setattr(torch.cuda, name, before)


def _places(model: nn.Module) -> list[Place]:
    """Of all parameters and buffers."""
    found: list[Place] = []
    for module in model.modules():
        for home in (module._parameters, module._buffers):
            found += [(home, name, tensor, tensor.data_ptr()) for name, tensor in home.items() if tensor is not None]
    return found
