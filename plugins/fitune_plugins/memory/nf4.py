"""Memory strategy `nf4`: the base model's linear layers in 4-bit NormalFloat, by bitsandbytes.

QLoRA, Dettmers et al., arXiv 2305.14314. Adapters train on top of it, through weights that are dequantised layer by
layer as they are needed. The output head, embeddings and norms keep the model's own type. Changes numbers: what is
trained is an adapter of the quantised model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fitune import Fit, MemoryStrategy, ModelError, Plan, Problem, Recipe, Strategy, hookimpl, unwrapped
from fitune_plugins.loaders.bitsandbytes_layers import (
    check_bitsandbytes,
    compute_in,
    layers_in_4_bits,
    quantize_shapes,
)
from fitune_plugins.loaders.quantized import name_of_stored

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import BitsAndBytesConfig, PreTrainedModel


KEPT = ("embeddings", "head", "routed experts", "norms and others")
"""What is not quantised: bitsandbytes knows linear layers alone, and experts are one tensor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nf4Options:
    """Options of the strategy `nf4`."""

    double_quantization: bool = False
    """Whether scales (one for 64 weights) are quantised too: 4.13 bits a weight in place of 4.5, a little slower."""


@dataclass(frozen=True, slots=True)
class Nf4(Strategy):
    """Has the base model quantised as it is loaded."""

    options: Nf4Options

    def plan(self, plan: Plan) -> Plan:
        """Set the quantisation. Raises `ModelError` if another strategy has done so."""
        if plan.quantization is not None:
            raise ModelError("nf4: a [[memory.strategy]] before it quantises the model already. Keep one of them")
        return replace(plan, quantization=self._quantization())

    def loaded(self, model: PreTrainedModel) -> PreTrainedModel:
        """Let quantised layers compute in the model's own type. Raises `ModelError` if there are none."""
        if model.device.type == "meta":
            quantize_shapes(model, self._quantization())
        if not layers_in_4_bits(model):
            raise ModelError(f"nf4: {type(model).__name__} has no linear layer that could be quantised")
        compute_in(model, model.dtype)
        return model

    def told(self, model: PreTrainedModel) -> Iterable[str]:
        """Say how much of the frozen model is not in 4 bits, and what it is."""
        inner = unwrapped(model)
        left: dict[str, int] = {}
        for name, parameter in inner.named_parameters():
            if parameter.is_floating_point() and ".lora_" not in name and not parameter.requires_grad:
                kind = _kind(name, parameter, inner)
                left[kind] = left.get(kind, 0) + parameter.numel() * parameter.element_size()
        if left:
            parts = ", ".join(f"{kind} {_size(left[kind])}" for kind in KEPT if kind in left)
            yield f"nf4: {_size(sum(left.values()))} stay in {str(inner.dtype).removeprefix('torch.')}: {parts}"

    def _quantization(self) -> BitsAndBytesConfig:
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=self.options.double_quantization,
        )


def _kind(name: str, parameter: Tensor, model: PreTrainedModel) -> str:
    """Which of `KEPT` a weight is."""
    for kind, module in zip(KEPT, (model.get_input_embeddings(), model.get_output_embeddings()), strict=False):
        if module is not None and any(parameter is own for own in module.parameters()):
            return kind
    return KEPT[2] if parameter.ndim == 3 and "expert" in name else KEPT[3]


def _size(number: int) -> str:
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 / 100 else f"{number / 2**20:.2f} MiB"


@hookimpl
def ft_check(recipe: Recipe) -> Iterable[Problem]:
    """Refuse what cannot be trained, or not be loaded, in 4 bits."""
    number = next((at for at, use in enumerate(recipe.strategies) if isinstance(use.options, Nf4Options)), None)
    if number is None:
        return
    already = name_of_stored(recipe)
    if already is not None:
        yield Problem(
            key=f"memory.strategy.{number}.use",
            what=f'"nf4" quantises, but the checkpoint is quantised already ({already})',
            fix="Remove the strategy, or load a checkpoint that is not quantised",
        )
    if recipe.model.record.load_quantized is None:
        yield Problem(
            key="model.use",
            what=f'the model loader "{recipe.model.record.name}" cannot quantise, as the strategy "nf4" asks',
            fix='Load with use = "hf", or remove the strategy',
        )


@hookimpl
def ft_memory_strategies() -> Iterable[MemoryStrategy[Nf4Options]]:
    """Offer the strategy."""
    yield MemoryStrategy(
        name="nf4",
        summary="Base model's linear layers in 4-bit NormalFloat (QLoRA, bitsandbytes): a quarter of bfloat16's memory",
        exact=False,
        makes=("quantization",),
        conflicts_with={"none": "it trains every weight, and 4-bit ones have no gradient"},
        fit=Fit(asked=True),
        options=Nf4Options,
        make=Nf4,
        check=check_bitsandbytes,
    )
