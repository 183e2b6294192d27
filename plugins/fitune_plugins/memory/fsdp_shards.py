"""Sharding a model over the processes of torch's group: from hosts to a part on each device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from fitune import ModelError, unwrapped
from fitune_plugins.memory.fsdp_filling import Filler

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Root(nn.Module):
    """All of the model, and whatever is computed with it: what its unit holds is whole for as long as that takes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What `compute` gives for these arguments."""
        return compute(*args, **kwargs)

    def run(self, compute: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The same, with the unit whole; without a backward pass, which would do so, it is given back behind it."""
        unit = cast(FSDPModule, self)
        unit.set_reshard_after_forward(not torch.is_grad_enabled(), recurse=False)
        return self(compute, *args, **kwargs)


def shard(model: PreTrainedModel, *, reshard_after_forward: bool, prefetch: int, offload: bool) -> Root:
    """Put the model on the devices of all processes, in parts. Raises `ModelError` where it cannot be.

    A unit at a time goes to the device, so that there is room for the parts and one unit. It comes from the first
    process, or, where weights lie in files that every process has, its rows from the one that is to have them.
    """
    mesh = _mesh()
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    _must_be_fit(model, layers)
    whole = _adapter_stays_whole(model)
    policy = MixedPrecisionPolicy(cast_forward_inputs=False) if whole else _precision(model)
    place = CPUOffloadPolicy() if offload and mesh.device_type == "cuda" else OffloadPolicy()
    simulated = dist.get_backend() == "fake"  # in a forecast, no tensor has values, and nobody else is there
    if not simulated:
        _must_be_equal(model)
    root = Root(model)
    embeddings = _own_embeddings(model)
    units: list[nn.Module] = [*embeddings, *layers, root]
    filled = units if simulated else Filler(model, mesh.device_type).fill(units)
    for unit in filled:
        ignored = {p for p in unit.parameters() if p.requires_grad} if whole else set()
        _ready(unit, ignored)
        fully_shard(
            unit,
            mesh=mesh,
            reshard_after_forward=reshard_after_forward and unit is not root,
            mp_policy=policy,
            offload_policy=place,
            ignored_params=ignored,
        )
        _sum_gradients(cast(FSDPModule, unit))
    for unit in embeddings:
        cast(FSDPModule, unit).set_unshard_in_backward(False)  # a look-up needs no weight for its gradient
    _prefetch(cast("list[FSDPModule]", layers), prefetch)
    return root


def sharded(model: nn.Module) -> Iterator[DTensor]:
    """The weights of which each process has a part."""
    return (parameter for parameter in model.parameters() if isinstance(parameter, DTensor))


def described(model: nn.Module) -> Iterable[str]:
    """What is shared out, and what each process has of it."""
    parts = list(sharded(model))
    size, own = (sum(t.numel() * t.element_size() for t in of) for of in (parts, [p.to_local() for p in parts]))
    whole = sum(p.numel() for p in model.parameters() if p.requires_grad and not isinstance(p, DTensor))
    beside = f"; the {whole:,} parameters that train are whole in each" if whole else ""
    count = dist.get_world_size()
    yield f"fsdp: {size / 2**30:.2f} GiB of weights in {count} parts, {own / 2**30:.2f} GiB here{beside}"


def _own_embeddings(model: PreTrainedModel) -> list[nn.Module]:
    """The input embeddings, a unit of their own where the head does not share them: they are needed for a moment."""
    inner = unwrapped(model)
    module, head = inner.get_input_embeddings(), inner.get_output_embeddings()
    of_head = set() if head is None else set(head.parameters())
    return [] if module is None or of_head.intersection(module.parameters()) else [module]


def _mesh() -> DeviceMesh:
    """All processes in a row."""
    kind = "cuda" if "nccl" in dist.get_backend() else "cpu"
    return init_device_mesh(kind, (dist.get_world_size(),))


def _adapter_stays_whole(model: nn.Module) -> bool:
    """Whether what trains is little beside what does not."""
    trains = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return 2 * trains < sum(p.numel() for p in model.parameters())


def _precision(model: nn.Module) -> MixedPrecisionPolicy:
    """Layers compute in the model's type; gradients are summed in float32, which shards are in."""
    kinds = {p.dtype for p in model.parameters()}
    if len(kinds) > 1 or torch.float16 in kinds:
        names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        raise ModelError(
            f"fsdp: weights that train are of the types {names}, which cannot be sharded so. Load the model in one, "
            '"bfloat16" or "float32"'
        )
    (kind,) = kinds
    if kind == torch.float32:
        return MixedPrecisionPolicy(cast_forward_inputs=False)
    return MixedPrecisionPolicy(param_dtype=kind, reduce_dtype=torch.float32, cast_forward_inputs=False)


def _ready(unit: nn.Module, ignored: set[nn.Parameter]) -> None:
    """Have a unit's weights lie in rows, and those that train be float32 ones."""
    for parameter in unit.parameters():
        if parameter in ignored or isinstance(parameter, DTensor):
            continue
        data = parameter.data.float() if parameter.requires_grad else parameter.data
        parameter.data = data.contiguous()


def _must_be_fit(model: nn.Module, layers: list[GradientCheckpointingLayer]) -> None:
    """Raise `ModelError` where a model has no layers, or weights that are no plain numbers."""
    name = type(model).__name__
    if not layers:
        what = f"{name} has no layers that transformers marks as such"
        raise ModelError(f'fsdp: {what}. Remove the [[memory.strategy]] with use = "fsdp"')
    if any(not p.is_floating_point() for p in model.parameters()):
        what = f"{name} has quantised weights, beside which stand scales that not every process is given"
        raise ModelError(f'fsdp: {what}. Remove the [[memory.strategy]] with use = "fsdp"')


def _must_be_equal(model: nn.Module) -> None:
    """Raise `ModelError`, in every process, where the model that one built is not what the first one read."""
    own = [(name, tuple(p.shape), str(p.dtype), p.requires_grad) for name, p in model.named_parameters()]
    own += [(name, tuple(b.shape), str(b.dtype), False) for name, b in model.named_buffers()]
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, own)
    for other in every[1:]:
        if other != every[0]:
            here, there = next(
                (pair for pair in zip(every[0], other, strict=False) if pair[0] != pair[1]), (len(every[0]), len(other))
            )
            raise ModelError(
                f"fsdp: the model without weights is not what was read: {there} there is {here} here. Its loader's "
                'build_model must give what its load_model does. Remove the [[memory.strategy]] with use = "fsdp"'
            )


def _sum_gradients(unit: FSDPModule) -> None:
    """Have gradients summed, not averaged: the step divides them by its targets."""
    unit.set_gradient_divide_factor(1.0)
    unit.set_force_sum_reduction_for_comms(True)


def _prefetch(layers: list[FSDPModule], ahead: int) -> None:
    """Have layers gathered ahead; one is by itself."""
    if ahead == 1:
        return
    for order, tell in (
        (layers, "set_modules_to_forward_prefetch"),
        (layers[::-1], "set_modules_to_backward_prefetch"),
    ):
        for place, layer in enumerate(order):
            getattr(layer, tell)(order[place + 1 : place + 1 + ahead])
