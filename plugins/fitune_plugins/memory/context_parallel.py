"""Memory strategy `context-parallel`: a row's tokens are spread over several processes, each on a GPU of its own.

Activations are what long rows take, and each process keeps those of its tokens alone. Attention looks at all of a row:
before it each process gives away the heads of its tokens, and gets some heads of all tokens; behind it the other way
round (DeepSpeed-Ulysses, arXiv 2309.14509). So the attention kernel is the one of a single card, on whole rows: packed
documents need nothing of their own, and heads, unlike the blocks of a ring, all have the same work under a causal mask.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from fitune import Batch, MemoryStrategy, ModelError, Plan, Strategy, hookimpl

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "context-parallel"

OBJECTIVE = "sft"
"""The objective whose loss is a sum over tokens, and so over parts of rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextParallelOptions:
    """Options of the strategy `context-parallel`."""

    cards: Annotated[int, Ge(2)] | None = None
    """Processes that a row is spread over: all of the run's, or so many, each group of which has rows of its own."""


@dataclass(slots=True)
class ContextParallel(Strategy):
    """Splits rows, and has attention computed together."""

    options: ContextParallelOptions
    count: int = field(default=1, init=False)
    place: int = field(default=0, init=False)
    """Of this process in its group."""

    def plan(self, plan: Plan) -> Plan:
        """Say how many processes share rows. Raises `ModelError` if they cannot be grouped."""
        if plan.processes == 1:
            what = f"{NAME} has no effect: there is one process. Start several with --gpus"
            return replace(plan, notices=(*plan.notices, what))
        self.count = self.options.cards or plan.processes
        if plan.processes % self.count:
            raise ModelError(
                f"{NAME}: {plan.processes} processes cannot be put into groups of {self.count}. Set cards to a number "
                f"that {plan.processes} can be divided by, or leave it out"
            )
        unrecorded = f"{NAME} has processes wait for each other in every layer"
        return replace(plan, context_parallel=self.count, unrecorded=unrecorded)

    def split_rows(self, model: PreTrainedModel) -> None:
        """Spread attention. Raises `ModelError` for a model whose attention, or another layer, cannot be spread."""
        from fitune_plugins.memory.context_parallel_attention import spread

        self.place = spread(model, self.count)

    def part(self, batch: Batch) -> Batch:
        """This process' tokens, and the one behind them."""
        if self.count == 1:
            return batch
        from fitune_plugins.memory.context_parallel_rows import part_of

        return part_of(batch, self.count, self.place)

    def told(self, model: PreTrainedModel) -> Iterable[str]:
        """Say how rows are spread."""
        if self.count > 1:
            yield f"{NAME}: each row is spread over {self.count} processes, and its attention's heads over them too"


@hookimpl
def ft_memory_strategies() -> Iterable[MemoryStrategy[ContextParallelOptions]]:
    """Offer the strategy."""
    yield MemoryStrategy(
        name=NAME,
        summary="Each row's tokens spread over several GPUs, which exchange heads around attention (Ulysses)",
        options=ContextParallelOptions,
        make=ContextParallel,
        exact=True,
        requires={OBJECTIVE: "others look at documents as a whole, of which each process has a part"},
    )
