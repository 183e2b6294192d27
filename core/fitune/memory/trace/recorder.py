"""The recorder of CUDA graphs in a forecast: what a run would compute is traced, and what it would replay is not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fitune.compose.recorder import NoRecorder, takes_more_targets, why_not
from fitune.memory.allocator.allocator import CLOSE_POOL, EMPTY_CACHE
from fitune.memory.trace.tracer import Tracer
from fitune.plugin.strategy import CannotRecord, Plan


class TracedRecorder(NoRecorder):
    """Has the tracer know which memory is of the pool, and when the allocator's cache is given back."""

    def __init__(self, tracer: Tracer, plan: Plan, device: torch.device, *, length: int) -> None:
        """As a run with this plan would have it on a GPU; rows have `length` tokens at most."""
        super().__init__(why_not(plan, gpu=plan.gpu))
        self.device = device
        self.length, self.more_targets = length, takes_more_targets(plan)
        self._tracer = tracer
        self._generator: list[Tensor] = []
        """What torch's generator keeps on the card for graphs: a seed, and an offset."""

    def apart(self, compute: Callable[[], Tensor]) -> Tensor:
        """Compute in the pool; `against` says what a run would see."""
        tracer = self._tracer
        with self._in_pool():
            loss = compute()
        self.against = ""
        if tracer.waits:
            self.against = f"the host waits for the GPU in the midst of it ({tracer.waits})"
        if tracer.draws and tracer.again:
            self.against = "it draws random numbers, and the same ones again where it computes layers anew"
        return loss

    def record(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Compute in the pool, as a recording takes the same memory; what replays it takes none."""
        if not self._generator:
            self._generator = [torch.empty(1, dtype=torch.int64, device=self.device) for _ in range(2)]
        self._tracer.log.release(EMPTY_CACHE)  # as `torch.cuda.graph` begins
        with self._in_pool():
            loss = compute()
        if self._tracer.waits:
            raise CannotRecord(f"the host waits for the GPU in the midst of it ({self._tracer.waits})")
        self._tracer.work.graphs = True
        return lambda: loss

    def make_room(self) -> None:
        """Note it."""
        self._tracer.log.release(EMPTY_CACHE)

    def close(self) -> None:
        """Note it."""
        self._tracer.log.release(CLOSE_POOL)

    @contextlib.contextmanager
    def _in_pool(self) -> Iterator[None]:
        self._tracer.apart, self._tracer.waits = True, ""
        try:
            yield
        finally:
            self._tracer.apart = False
