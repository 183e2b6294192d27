"""Memory strategy `offload-checkpoints`: what each checkpointed layer keeps, its input, waits in host memory.

It is copied while the layer computes, and brought back while the layer behind it is in its backward pass. The input of
the model's last layer stays on the card: its backward pass comes first, and would only wait for it. Changes no number.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from fitune import Fit, MemoryStrategy, ModelError, Plan, Strategy, hookimpl

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from fitune_plugins.memory.host_copies import HostCopies

NAME = "offload-checkpoints"

NEEDS = "gradient-checkpointing"

CHECKPOINT = "_gradient_checkpointing_func"


@dataclass(frozen=True, slots=True, kw_only=True)
class OffloadCheckpointsOptions:
    """Options of the strategy `offload-checkpoints`."""

    prefetch: bool = True
    """Whether an input comes back while the layer behind it is in its backward pass. Without it, each layer waits for
    its own, which saves the memory of one and matters little where rows are long."""


@dataclass(frozen=True, slots=True)
class OffloadCheckpoints(Strategy):
    """Wraps the function that checkpoints a layer."""

    options: OffloadCheckpointsOptions

    def plan(self, plan: Plan) -> Plan:
        """Say that micro-batches cannot be replayed: copies are waited for, and go where there is room at the time."""
        return replace(plan, unrecorded=plan.unrecorded or f"{NAME} waits for copies in the midst of a micro-batch")

    def prepare(self, model: PreTrainedModel) -> PreTrainedModel:
        """Wrap it. Raises `ModelError` if no layer is checkpointed."""
        from transformers.modeling_layers import GradientCheckpointingLayer

        from fitune_plugins.memory.host_copies import HostCopies

        layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
        checkpointed = [layer for layer in layers if layer.gradient_checkpointing]
        if not checkpointed:
            raise ModelError(
                f'{NAME}: no layer is checkpointed. Put a [[memory.strategy]] with use = "{NEEDS}" before it'
            )
        chain = _Chain(HostCopies(model.device, NAME), prefetch=self.options.prefetch)
        for number, layer in enumerate(checkpointed):
            keep = layer is layers[-1]
            layer.__dict__[CHECKPOINT] = partial(_offloaded, layer.__dict__[CHECKPOINT], chain, number, keep)
        return model


class _Kept(Protocol):
    """The input of a layer."""

    def fetch(self) -> None:
        """Begin to bring it to the card."""

    def take(self) -> Tensor:
        """It, on the card."""

    def leave(self) -> None:
        """Let go of it on the card."""


class _OnCard:
    """An input that stays."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor.detach()

    def fetch(self) -> None:
        """Is there."""

    def take(self) -> Tensor:
        """It, on the card."""
        return self._tensor

    def leave(self) -> None:
        """Stay."""


class _Input:
    """The input of a layer, and that of the layer before it, which the backward pass will ask for next."""

    def __init__(self, kept: _Kept, before: _Input | None) -> None:
        self.kept = kept
        self._before = None if before is None else weakref.ref(before)

    def unpack(self) -> Tensor:
        tensor = self.kept.take()
        before = None if self._before is None else self._before()
        if before is not None:
            before.kept.fetch()
        return tensor


class _Chain:
    """The inputs of a forward pass, one behind the other."""

    def __init__(self, copies: HostCopies, *, prefetch: bool) -> None:
        self._copies = copies
        self._prefetch = prefetch
        self._last: tuple[int, weakref.ref[_Input]] | None = None

    def add(self, tensor: Tensor, number: int, *, keep: bool) -> _Input:
        before = None
        if self._prefetch and self._last is not None and self._last[0] == number - 1:
            before = self._last[1]()
        kept: _Kept = _OnCard(tensor) if keep else self._copies.send(tensor)
        made = _Input(kept, before)
        self._last = (number, weakref.ref(made))
        return made


def _offloaded(
    checkpoint: Callable[..., Any], chain: _Chain, number: int, keep: bool, layer: Callable[..., Any], *inputs: Any
) -> Any:
    """Checkpoint a layer; what torch keeps for it passes the hooks that are set around.

    Of all that it keeps, only the hidden states, the first input, are the layer's own: masks and the like are shared.
    """
    import torch
    from torch.autograd.graph import saved_tensors_hooks

    if not torch.is_grad_enabled() or not inputs:
        return checkpoint(layer, *inputs)
    storage, shape = inputs[0].untyped_storage()._cdata, inputs[0].shape  # not the tensor, which the hooks would keep
    made: list[_Input] = []

    def pack(tensor: Tensor) -> Tensor | _Input:
        if made or tensor.untyped_storage()._cdata != storage or tensor.shape != shape:
            return tensor
        made.append(chain.add(tensor, number, keep=keep))
        return made[0]

    def unpack(packed: Tensor | _Input) -> Tensor:
        return packed.unpack() if isinstance(packed, _Input) else packed

    with saved_tensors_hooks(pack, unpack):
        results = checkpoint(layer, *inputs)
    for one in made:
        one.kept.leave()
    return results


@hookimpl
def ft_memory_strategies() -> Iterable[MemoryStrategy[OffloadCheckpointsOptions]]:
    """Offer the strategy."""
    yield MemoryStrategy(
        name=NAME,
        summary="Inputs of checkpointed layers in host memory, copied while the card computes",
        options=OffloadCheckpointsOptions,
        make=OffloadCheckpoints,
        exact=True,
        requires={NEEDS: "it moves the inputs of layers that are checkpointed"},
        fit=Fit(needs=NEEDS, asked=True),
    )
