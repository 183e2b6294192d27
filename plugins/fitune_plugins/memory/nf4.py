"""Memory strategy `nf4`: the base model's linear layers in 4-bit NormalFloat, by bitsandbytes.

QLoRA, Dettmers et al., arXiv 2305.14314. Adapters train on top of it, through weights that are dequantised layer by
layer as they are needed. The output head, embeddings and norms keep the model's own type. Changes numbers: what is
trained is an adapter of the quantised model.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fitune import Fit, MemoryStrategy, ModelError, Plan, Problem, Recipe, Strategy, hookimpl

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedModel

BITSANDBYTES = (0, 50)
"""The oldest release that this works with: the first whose 8-bit optimizers know the CPU."""


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
            self._quantize_shapes(model)
        layers = _quantized(model)
        if not layers:
            raise ModelError(f"nf4: {type(model).__name__} has no linear layer that could be quantised")
        for layer in layers:
            layer.compute_dtype = model.dtype
            layer.compute_type_is_set = True
            # In evaluation on a CPU with AVX-512 BF16, bitsandbytes repacks the weight for a kernel that has no
            # gradient, and keeps it so: training after the first evaluation would go on without one.
            layer.support_avx512bf16_for_cpu = False
        return model

    def _quantization(self) -> BitsAndBytesConfig:
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=self.options.double_quantization,
        )

    def _quantize_shapes(self, model: PreTrainedModel) -> None:
        """Do to a model without values what loading it quantised does to one with."""
        from bitsandbytes.functional import name2qmap
        from transformers.quantizers.auto import AutoHfQuantizer

        dtype, quantizer = model.dtype, AutoHfQuantizer.from_config(self._quantization())
        quantizer.preprocess_model(model, device_map=None)
        for layer in _quantized(model):
            for parameter in layer.parameters():
                parameter.data = parameter.data.to(dtype)
            layer.weight._quantize(layer.weight.device)
        for name, table in list(name2qmap.items()):
            if table.is_meta:
                del name2qmap[name]  # bitsandbytes keeps the first that it makes, for models with values too
        quantizer.postprocess_model(model)


def _quantized(model: PreTrainedModel) -> list[Any]:
    from bitsandbytes.nn.modules import Linear4bit

    return [module for module in model.modules() if isinstance(module, Linear4bit)]


def check_bitsandbytes(options: object) -> Iterable[Problem]:
    """Whether bitsandbytes is installed, and new enough; it is not imported, which takes seconds."""
    fix = "Install it: pip install 'fitune[bitsandbytes]'"
    try:
        version = importlib.metadata.version("bitsandbytes")
    except importlib.metadata.PackageNotFoundError:
        yield Problem(key="use", what="the package bitsandbytes is not installed", fix=fix)
        return
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < BITSANDBYTES:
        needed = ".".join(map(str, BITSANDBYTES))
        yield Problem(key="use", what=f"bitsandbytes {version} is too old: {needed} is needed", fix=fix)


@hookimpl
def ft_check(recipe: Recipe) -> Iterable[Problem]:
    """Refuse what cannot be trained, or not be loaded, in 4 bits."""
    if not any(isinstance(use.options, Nf4Options) for use in recipe.strategies):
        return
    if recipe.adapter.record.name == "none":
        yield Problem(
            key="adapter.use",
            what='"none" trains every weight, but the strategy "nf4" makes them 4-bit ones, which have no gradient',
            fix='Name an adapter, e.g. "lora", or remove the strategy',
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
        fit=Fit(asked=True),
        options=Nf4Options,
        make=Nf4,
        check=check_bitsandbytes,
    )
