"""Memory strategy `fsdp`: each of several processes holds a part of every weight, and layers are gathered as they come.

torch's `fully_shard` does the work (FSDP2; Zhao et al., arXiv 2304.11277; Rajbhandari et al., "ZeRO", arXiv 1910.02054,
stage 3): a unit is a decoder layer, or the input embeddings; and one more is all the rest, gathered for as long as a
micro-batch takes, so that whatever computes the loss finds the output head whole. An adapter stands beside it: each
process has all of it, for it is small, and gathering it would cost more than it saves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ParamSpec, TypeVar

from annotated_types import Ge

from fitune import Fit, MemoryStrategy, ModelError, Plan, Problem, Recipe, Strategy, hookimpl

if TYPE_CHECKING:
    from transformers import PreTrainedModel

P = ParamSpec("P")
T = TypeVar("T")

NAME = "fsdp"

REFUSED = {
    "nf4": "scales stand beside 4-bit weights, which processes that do not read the model are not given",
    "host-embeddings": "both decide where the embeddings are",
}
"""Strategies that cannot be used beside it, and why."""

BLOCKWISE = ("adamw-8bit", "paged-adamw")
"""Strategies whose optimizer keeps state that a checkpoint cannot put together from shards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FsdpOptions:
    """Options of the strategy `fsdp`."""

    reshard_after_forward: bool = True
    """Whether a layer is given back after its forward pass and gathered again for its backward pass. Without, all
    layers are whole between them: a gathering less, and the memory of the whole model."""
    prefetch: Annotated[int, Ge(1)] = 1
    """Layers that are gathered ahead of the one that computes."""
    offload: bool = False
    """Whether shards, and of full fine-tuning the optimizer too, stand in host memory. No effect without a GPU."""


class Fsdp(Strategy):
    """Shards the model, and has losses computed within the unit that holds the rest."""

    def __init__(self, options: FsdpOptions) -> None:
        self.options = options
        self._root: Callable[..., object] | None = None

    def plan(self, plan: Plan) -> Plan:
        """Have the base read by one process. Raises `ModelError` if its weights cannot be sharded."""
        if plan.processes == 1:
            what = "fsdp has no effect: there is one process. Start several with --gpus"
            return replace(plan, notices=(*plan.notices, what))
        if plan.quantized:
            raise ModelError(
                f'fsdp cannot shard quantised weights: {REFUSED["nf4"]}. Remove [[memory.strategy]] "fsdp"'
            )
        return replace(plan, sharded=True, unrecorded="fsdp gathers weights at other addresses each time")

    def distribute(self, model: PreTrainedModel) -> PreTrainedModel:
        """Shard it. Raises `ModelError` if it has no decoder layers that are known, or types that cannot be sharded."""
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            from fitune_plugins.memory.fsdp_shards import shard

            self._root = shard(
                model,
                reshard_after_forward=self.options.reshard_after_forward,
                prefetch=self.options.prefetch,
                offload=self.options.offload,
            ).run
        return model

    def whole(self, compute: Callable[P, T]) -> Callable[P, T]:
        """Compute within the unit that holds the rest."""
        root = self._root
        if root is None:
            return compute

        def within(*args: P.args, **kwargs: P.kwargs) -> T:
            return root(compute, *args, **kwargs)  # type: ignore[return-value]

        return within

    def told(self, model: PreTrainedModel) -> Iterable[str]:
        """Say what is sharded."""
        from fitune_plugins.memory.fsdp_shards import described

        return described(model) if self._root is not None else ()


@hookimpl
def ft_check(recipe: Recipe) -> Iterable[Problem]:
    """Refuse what cannot be sharded, or not be put together again."""
    number = next((at for at, use in enumerate(recipe.strategies) if isinstance(use.options, FsdpOptions)), None)
    if number is None:
        return
    if recipe.adapter.record.name != "none":
        return
    for name in sorted({use.record.name for use in recipe.strategies}.intersection(BLOCKWISE)):
        yield Problem(
            key=f"memory.strategy.{number}.use",
            what=f'"fsdp" shards the optimizer\'s state, and that of "{name}" lies in blocks that a checkpoint could '
            "not put together",
            fix="Remove one of the two",
        )
    if not recipe.train.master_weights:
        yield Problem(
            key="train.master_weights",
            what='"fsdp" shards what trains in float32: the shards are the masters',
            fix="Remove it",
        )


@hookimpl
def ft_memory_strategies() -> Iterable[MemoryStrategy[FsdpOptions]]:
    """Offer the strategy."""
    yield MemoryStrategy(
        name=NAME,
        summary="Each of several GPUs holds a part of the weights; layers are gathered as they are needed (FSDP2)",
        options=FsdpOptions,
        make=Fsdp,
        exact=True,
        conflicts_with=REFUSED,
        fit=Fit(settings=({"reshard_after_forward": False}, {})),
    )
