"""Memory strategy `expandable-segments`: the CUDA caching allocator grows its segments, so that less is fragmented.

https://docs.pytorch.org/docs/stable/notes/cuda.html#optimizing-memory-usage-with-pytorch-alloc-conf
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from fitune import Fit, MemoryStrategy, Plan, Strategy, hookimpl


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpandableSegmentsOptions:
    """Options of the strategy `expandable-segments`."""

    enabled: bool = True
    """Whether segments grow."""


@dataclass(frozen=True, slots=True)
class ExpandableSegments(Strategy):
    """Sets the allocator's option."""

    options: ExpandableSegmentsOptions

    def plan(self, plan: Plan) -> Plan:
        """Set it, unless there is no GPU."""
        if not plan.gpu:
            return replace(plan, notices=(*plan.notices, "expandable-segments: no GPU here, so it has no effect"))
        setting = ("expandable_segments", str(self.options.enabled))
        return replace(plan, allocator=(*plan.allocator, setting))


@hookimpl
def ft_memory_strategies() -> Iterable[MemoryStrategy[ExpandableSegmentsOptions]]:
    """Offer the strategy."""
    yield MemoryStrategy(
        name="expandable-segments",
        summary="Let the CUDA allocator grow its segments: less of the card lost to fragmentation, at no cost",
        options=ExpandableSegmentsOptions,
        make=ExpandableSegments,
        exact=True,
        fit=Fit(free=True),
    )
