"""Memory strategy `fused-lora`: a linear layer and its LoRA adapter as one operation.

peft computes `base(x) + lora_B(lora_A(x)) * scaling` by five operations, three of which make a tensor as large as the
layer's result, and autograd adds the gradients of both branches. Here the adapter's product is added onto the result
where it stands (`addmm_`), and so is its gradient. The same is kept for the backward pass, nothing else is made, and
the result is rounded once in place of three times (LoRA: Hu et al., arXiv 2106.09685).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from fitune import Fit, MemoryStrategy, ModelError, NoOptions, Strategy, hookimpl

if TYPE_CHECKING:
    from peft.tuners.lora.layer import LoraLayer
    from transformers import PreTrainedModel

NAME = "fused-lora"

KINDS = ("Linear", "Linear4bit")
"""What peft calls its adapted layers of the two kinds that are known here."""


@dataclass(frozen=True, slots=True)
class FusedLora(Strategy):
    """Replaces what adapted linear layers compute."""

    options: NoOptions

    def prepare(self, model: PreTrainedModel) -> PreTrainedModel:
        """Replace it. Raises `ModelError` if no layer has an adapter that this can compute."""
        from peft.tuners.lora.layer import LoraLayer

        from fitune_plugins.memory.lora_linear import forward

        found = [m for m in model.modules() if isinstance(m, LoraLayer) and type(m).__name__ in KINDS]
        plain = [layer for layer in found if is_plain(layer)]
        if not plain:
            why = "its adapters compute in another type than its layers" if found else "no linear layer has an adapter"
            if any(layer.lora_variant for layer in found):
                why = "its adapters are of another kind than LoRA's own, e.g. DoRA"
            raise ModelError(f"{NAME}: {why}. Remove the [[memory.strategy]] with use = {NAME!r}")
        for layer in plain:
            layer.__dict__["forward"] = partial(forward, layer)
        return model


def is_plain(layer: LoraLayer) -> bool:
    """Whether an adapted layer has one adapter of the plain kind, in the type that the layer computes in."""
    names = list(layer.lora_A)
    if len(names) != 1 or layer.lora_variant or layer.lora_bias[names[0]] or getattr(layer, "fan_in_fan_out", False):
        return False
    base: Any = layer.get_base_layer()
    adapter = layer.lora_A[names[0]].weight.dtype
    computes = base.weight.dtype if base.weight.is_floating_point() else base.compute_dtype
    in_8_bits = base.weight.is_floating_point() and base.weight.element_size() == 1  # `fp8`, which computes in any
    return bool(adapter == computes or in_8_bits)


@hookimpl
def ft_memory_strategies() -> Iterable[MemoryStrategy[NoOptions]]:
    """Offer the strategy."""
    yield MemoryStrategy(
        name=NAME,
        summary="Linear layers with their LoRA as one operation: fewer passes and temporaries; differs by rounding",
        options=NoOptions,
        make=FusedLora,
        exact=True,
        fit=Fit(free=True),
    )
