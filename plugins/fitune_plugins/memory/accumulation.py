"""Memory strategy `accumulation`: several micro-batches to an optimizer step, token-exact.

The gradient of a step is the sum over its target tokens over their number, across micro-batches and processes, so
it is the gradient of one large batch however the tokens are spread (the fault that trainers long had:
https://github.com/huggingface/transformers/pull/34191). The loop does the arithmetic; this sets the number.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Ge, Le

from fitune import MemoryStrategy, Plan, Strategy, hookimpl


@dataclass(frozen=True, slots=True, kw_only=True)
class AccumulationOptions:
    """Options of the strategy `accumulation`."""

    steps: Annotated[int, Ge(1), Le(2**20)]
    """Micro-batches to an optimizer step, in each process."""


@dataclass(frozen=True, slots=True)
class Accumulation(Strategy):
    """Sets the number of micro-batches to a step."""

    options: AccumulationOptions

    def plan(self, plan: Plan) -> Plan:
        """Set it."""
        return replace(plan, accumulation=self.options.steps)


@hookimpl
def ft_memory_strategies() -> Iterable[MemoryStrategy[AccumulationOptions]]:
    """Offer the strategy."""
    yield MemoryStrategy(
        name="accumulation",
        summary="Several micro-batches to a step: a larger batch in the memory of a small one",
        options=AccumulationOptions,
        make=Accumulation,
        exact=True,
        accumulates="steps",
    )
