"""Memory strategy `cuda-graphs`: a micro-batch's forward and backward pass, and the gathering of its gradients, is
recorded once and replayed: one launch for the host, where there were thousands.

Below some 4,096 tokens a micro-batch the host is what a step waits for: a launch takes 10 us of it. What is computed is
the same, to the bit. Micro-batches take their memory from a pool that they share among themselves, and nobody else can
use; that is what it costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from fitune import Batch, CannotRecord, Fit, MemoryStrategy, MicroBatch, Plan, Recorder, Strategy, hookimpl
from fitune_plugins.speed.cuda_graph_shapes import Shape, Shapes, copy_into, shape_of

if TYPE_CHECKING:
    from torch import Tensor

NAME = "cuda-graphs"

STRIKES = 2
"""Micro-batches in which something is seen that cannot be recorded before none is any more: what a kernel does at its
first use alone, e.g. to measure itself, is no reason.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaGraphsOptions:
    """Options of the strategy `cuda-graphs`."""

    graphs: Annotated[int, Ge(1)] = 8
    """Shapes of micro-batches that are recorded, at most; others are launched as usual. Each takes some megabytes of
    the driver's memory."""


@dataclass(slots=True)
class CudaGraphs(Strategy):
    """Records micro-batches."""

    options: CudaGraphsOptions
    gpu: bool = field(default=False, init=False)

    def plan(self, plan: Plan) -> Plan:
        """Say so where there is no GPU."""
        self.gpu = plan.gpu
        if plan.gpu:
            return plan
        return replace(plan, notices=(*plan.notices, f"{NAME}: no GPU here, so it has no effect"))

    def micro_batch(self, compute: MicroBatch, recorder: Recorder) -> MicroBatch:
        """Replay what was recorded; record what comes again; compute the rest in the same pool."""
        if recorder.refused:
            if self.gpu:
                recorder.said.append(f"{NAME} has no effect: {recorder.refused}")
            return compute
        return _Recording(compute, recorder, self.options.graphs)


@dataclass(slots=True)
class _Recorded:
    """A micro-batch of one shape."""

    static: Batch
    """On the device, where the recording reads it."""
    replay: Callable[[], Tensor]


@dataclass(slots=True)
class _Recording:
    """A micro-batch is computed in the step in which its shape is first seen, and recorded in a later one: kernels are
    loaded, compiled and measured by then, and optimizers have their state. All that is computed and recorded shares one
    pool, so that the largest micro-batch decides on its size.
    """

    compute: MicroBatch
    recorder: Recorder
    most: int
    shapes: Shapes = field(init=False)
    seen: dict[Shape, int] = field(default_factory=dict)
    """The step in which each shape was first computed."""
    recorded: dict[Shape, _Recorded] = field(default_factory=dict)
    largest: int = 0
    """Tokens of the largest micro-batch so far."""
    strikes: int = 0
    given_up: bool = False

    def __post_init__(self) -> None:
        self.shapes = Shapes(length=self.recorder.length, more_targets=self.recorder.more_targets)

    def __call__(self, batch: Batch) -> Tensor:
        """Compute a micro-batch in one way or the other."""
        batch = self.shapes.padded(batch)
        shape = shape_of(batch)
        if self.given_up:
            return self.compute(batch)
        if self.recorded and not self.recorder.is_as_recorded():
            self.recorded.clear()
        if shape not in self.recorded and self._is_due(shape):
            try:
                self._record(shape, batch)
            except CannotRecord as why:
                self._give_up(str(why))
                return self.compute(batch)
        if shape in self.recorded:
            one = self.recorded[shape]
            copy_into(one.static, batch, pin=self.recorder.pin_memory)
            return one.replay()
        return self._apart(shape, batch)

    def _is_due(self, shape: Shape) -> bool:
        """Whether to record it now."""
        known = self.seen.get(shape, self.recorder.step)
        return known < self.recorder.step and not self.recorder.against and len(self.recorded) < self.most

    def _record(self, shape: Shape, batch: Batch) -> None:
        static = batch.to(self.recorder.device)
        self.recorded[shape] = _Recorded(static, self.recorder.record(partial(self.compute, static)))

    def _apart(self, shape: Shape, batch: Batch) -> Tensor:
        if batch.input_ids.numel() > self.largest:
            self._begin_anew(batch.input_ids.numel())
        loss = self.recorder.apart(partial(self.compute, batch))
        if shape not in self.seen:
            self.seen[shape] = self.recorder.step
        self.strikes = self.strikes + 1 if self.recorder.against else 0
        if self.strikes >= STRIKES and self.seen[shape] < self.recorder.step:
            self._give_up(self.recorder.against)
        return loss

    def _begin_anew(self, tokens: int) -> None:
        """Have the pool made by the largest micro-batch: what smaller ones have taken of it could not be given back,
        and would be in its way.
        """
        self.largest = tokens
        if self.seen:
            self.recorded.clear()
            self.recorder.close()
        else:
            self.recorder.make_room()

    def _give_up(self, why: str) -> None:
        """Go on as if nobody had asked for graphs. What was computed is right, and what was not will be."""
        self.given_up = True
        self.recorded.clear()
        self.recorder.close()
        self.recorder.said.append(f"{NAME}: micro-batches are launched as usual from now on, since {why}")


@hookimpl
def ft_memory_strategies() -> Iterable[MemoryStrategy[CudaGraphsOptions]]:
    """Offer the strategy."""
    yield MemoryStrategy(
        name=NAME,
        summary="Micro-batches are recorded and replayed as CUDA graphs: the host no longer bounds short rows",
        options=CudaGraphsOptions,
        make=CudaGraphs,
        exact=True,
        fit=Fit(),
    )
