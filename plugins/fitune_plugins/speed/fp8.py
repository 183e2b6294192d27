"""Memory strategy `fp8`: the frozen base's products in 8-bit floating point, forward and for the gradient of inputs.

An H100 multiplies them at twice bfloat16's rate; an adapter on top trains in its own type. The weights take half of
bfloat16's memory where their transposes are made anew for each gradient (`layouts = "one"`), or all of it with both
kept, which saves that time. It changes numbers, as every rounding of a base does, so a fit takes it only where `allow`
names it. Row-wise scales, as in Xi et al., "COAT", arXiv 2410.19313.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from fitune import Fit, MemoryStrategy, ModelError, Plan, Strategy, has_values, hookimpl, unwrapped

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

NAME = "fp8"

CAPABILITY = (8, 9)
"""Of the first NVIDIA GPUs that multiply such numbers (Ada, Hopper)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8Options:
    """Options of the strategy `fp8`."""

    layouts: Literal["one", "two"] = "two"
    """"two" keeps each weight's transpose beside it, for gradients: as much memory as bfloat16. "one" makes it anew
    each time: half of that, and slower."""


@dataclass(slots=True)
class Fp8(Strategy):
    """Rounds the weights of decoder layers."""

    options: Fp8Options
    gpu: bool = field(default=False, init=False)
    capability: tuple[int, int] | None = field(default=None, init=False)
    """Of a forecast's card."""

    def plan(self, plan: Plan) -> Plan:
        """Say where it does nothing. Raises `ModelError` for a base that is quantised otherwise."""
        if plan.quantized:
            raise ModelError(f"{NAME}: the model is quantised already. Keep one of the two")
        self.gpu, self.capability = plan.gpu, plan.capability
        if plan.gpu:
            return plan
        notice = f"{NAME} has no effect: its products are for NVIDIA GPUs"
        return replace(plan, notices=(*plan.notices, notice))

    def prepare(self, model: PreTrainedModel) -> PreTrainedModel:
        """Round them. Raises `ModelError` if there are none, or the GPU does not multiply such numbers."""
        import torch

        from fitune_plugins.speed.fp8_linear import convert

        if not self.gpu:
            return model
        inner = unwrapped(model)
        on_card = has_values(model) and inner.device.type == "cuda"
        capability = torch.cuda.get_device_capability(inner.device) if on_card else self.capability
        if capability is not None and capability < CAPABILITY:
            kind = f"a card of compute capability {capability[0]}.{capability[1]}"
            card = torch.cuda.get_device_name(inner.device) if on_card else kind
            what = f"{card} does not multiply numbers of 8 bits"
            raise ModelError(f"{NAME}: {what} (Ada and Hopper do). Remove the [[memory.strategy]]")
        found = list(dict.fromkeys(linear for linear in _linears(inner) if _fits(linear)))  # layers may share some
        if not found:
            why = "has no frozen linear layer in bfloat16 whose sides are multiples of 16"
            raise ModelError(f"{NAME}: {type(inner).__name__} {why}. Remove the [[memory.strategy]]")
        for linear in found:
            convert(linear, turned=self.options.layouts == "two")
        return model


def _linears(inner: PreTrainedModel) -> Iterable[nn.Linear]:
    """Of decoder layers: neither heads nor embeddings."""
    from torch import nn
    from transformers.modeling_layers import GradientCheckpointingLayer

    for layer in inner.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            for name, module in layer.named_modules():
                if type(module) is nn.Linear and "lora_" not in name:
                    yield module


def _fits(linear: Any) -> bool:
    """Whether its products can be made so: those of rows with scales of their own are given in bfloat16 alone."""
    import torch

    from fitune_plugins.speed.fp8_linear import MULTIPLE

    sides = (linear.in_features, linear.out_features)
    frozen = not any(parameter.requires_grad for parameter in linear.parameters())
    return linear.weight.dtype == torch.bfloat16 and frozen and not any(side % MULTIPLE for side in sides)


@hookimpl
def ft_memory_strategies() -> Iterable[MemoryStrategy[Fp8Options]]:
    """Offer the strategy."""
    yield MemoryStrategy(
        name=NAME,
        summary="The frozen base's products in 8-bit floating point (Ada, Hopper): faster; changes numbers",
        options=Fp8Options,
        make=Fp8,
        before=("fast-layers", "fused-lora"),
        exact=False,
        conflicts_with={"none": "it trains every weight, and 8-bit ones have no gradient"},
        fit=Fit(asked=True, settings=({}, {"layouts": "one"}), words={"layouts": "layouts"}),
    )
