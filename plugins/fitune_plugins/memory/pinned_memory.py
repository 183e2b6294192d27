"""Memory strategy `pinned-memory`: whether batches are staged in page-locked host memory. Off by default.

It frees no byte of the GPU either way: what it costs or saves is host memory that cannot be swapped.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from fitune import MemoryStrategy, Plan, Strategy, hookimpl


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedMemoryOptions:
    """Options of the strategy `pinned-memory`."""

    enabled: bool = False
    """Whether to pin."""


@dataclass(frozen=True, slots=True)
class PinnedMemory(Strategy):
    """Turns pinning on or off."""

    options: PinnedMemoryOptions

    def plan(self, plan: Plan) -> Plan:
        """Set it, unless there is no GPU to copy to."""
        if self.options.enabled and not plan.gpu:
            return replace(plan, notices=(*plan.notices, "pinned-memory: no GPU here, so nothing is pinned"))
        return replace(plan, pin_memory=self.options.enabled)


@hookimpl
def ft_memory_strategies() -> Iterable[MemoryStrategy[PinnedMemoryOptions]]:
    """Offer the strategy."""
    yield MemoryStrategy(
        name="pinned-memory",
        summary="Stage batches in page-locked host memory, or not (the default); no GPU byte either way",
        options=PinnedMemoryOptions,
        make=PinnedMemory,
        exact=True,
    )
