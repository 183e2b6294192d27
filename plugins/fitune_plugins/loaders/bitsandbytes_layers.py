"""Layers of bitsandbytes in a model: how they compute, and what stands for them in a forecast.

A model without values gets the layers that transformers' quantiser puts in, and their weights as they lie on a card.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from fitune import ModelError, Problem

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import BitsAndBytesConfig, PreTrainedModel


BITSANDBYTES = (0, 50)
"""The oldest release that this works with: the first whose 8-bit optimizers know the CPU."""


def check_bitsandbytes(options: object) -> Iterable[Problem]:
    """Whether bitsandbytes is installed, and new enough; it is not imported, which takes seconds. A forecast does
    without it.
    """
    fix = "Install it: pip install 'fitune[bitsandbytes]'"
    try:
        version = importlib.metadata.version("bitsandbytes")
    except importlib.metadata.PackageNotFoundError:
        yield Problem(key="use", what="the package bitsandbytes is not installed", fix=fix, to_run=True)
        return
    if hasattr(sys.modules.get("bitsandbytes"), "STANDS_IN"):
        what = "the package bitsandbytes was installed after a forecast was made without it"
        yield Problem(key="use", what=what, fix="Start Python anew", to_run=True)
        return
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < BITSANDBYTES:
        needed = ".".join(map(str, BITSANDBYTES))
        yield Problem(key="use", what=f"bitsandbytes {version} is too old: {needed} is needed", fix=fix)


def stand_in() -> None:
    """Have `import bitsandbytes` find what stands for it without values, where it is not installed."""
    try:
        importlib.metadata.version("bitsandbytes")
    except importlib.metadata.PackageNotFoundError:
        from fitune_plugins.loaders.bitsandbytes_stand_in import put

        put()


def layers_in_4_bits(model: nn.Module) -> list[Any]:
    """The layers of a model that bitsandbytes has in 4 bits."""
    from bitsandbytes.nn.modules import Linear4bit

    return [module for module in model.modules() if isinstance(module, Linear4bit)]


def layers_in_8_bits(model: nn.Module) -> list[Any]:
    """The layers of a model that bitsandbytes has in 8 bits."""
    from bitsandbytes.nn.modules import Linear8bitLt

    return [module for module in model.modules() if isinstance(module, Linear8bitLt)]


def compute_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Let layers in 4 bits compute in the model's own type, with weights that keep their gradients' way."""
    for layer in layers_in_4_bits(model):
        layer.compute_dtype = dtype
        layer.compute_type_is_set = True
        # In evaluation on a CPU with AVX-512 BF16, bitsandbytes repacks the weight for a kernel that has no
        # gradient, and keeps it so: training after the first evaluation would go on without one.
        layer.support_avx512bf16_for_cpu = False


def quantize_shapes(model: PreTrainedModel, quantization: BitsAndBytesConfig) -> None:
    """Do to a model without values what loading it quantised does to one with."""
    stand_in()
    from bitsandbytes.functional import name2qmap
    from transformers.quantizers.auto import AutoHfQuantizer

    dtype, quantizer = model.dtype, AutoHfQuantizer.from_config(quantization, pre_quantized=False)
    quantizer.preprocess_model(model, device_map=None)
    for layer in (*layers_in_4_bits(model), *layers_in_8_bits(model)):
        for parameter in layer.parameters():
            parameter.data = parameter.data.to(dtype)
    for layer in layers_in_4_bits(model):
        layer.weight._quantize(layer.weight.device)
    for layer in layers_in_8_bits(model):
        _in_8_bits(layer)
    for name, table in list(name2qmap.items()):
        if table.is_meta:
            del name2qmap[name]  # bitsandbytes keeps the first that it makes, for models with values too
    quantizer.postprocess_model(model)


def _in_8_bits(layer: Any) -> None:
    """A byte a weight and a scale a row; and operations of torch in place of kernels whose results depend on values."""
    import torch

    from fitune_plugins.loaders.int8_shapes import int8_linear

    if layer.state.has_fp16_weights:
        raise ModelError("a checkpoint in 8 bits whose weights train (llm_int8_has_fp16_weight) cannot be forecast")
    weight = layer.weight
    weight.data = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    weight.CB, weight.SCB = weight.data, None
    scales = torch.empty(weight.shape[0], dtype=torch.float32, device=weight.device)
    layer.register_buffer("scales", scales, persistent=False)
    outliers = layer.state.threshold > 0

    def forward(inputs: torch.Tensor) -> torch.Tensor:
        return int8_linear(inputs, layer.weight.data, cast("torch.Tensor", layer.scales), layer.bias, outliers)

    layer.forward = forward
