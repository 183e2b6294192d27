"""What a layer of GPTQ or AWQ takes of a card, in operations of torch, for models without values.

Several weights stand in a 32-bit integer, and a group of inputs shares a scale and a zero for each output (GPTQ,
Frantar et al., arXiv 2210.17323: along the inputs, with the group of each input; AWQ, Lin et al., arXiv 2306.00978:
along the outputs). What a step does is that of the layers of GPTQModel 7 that have a gradient: GPTQ's are plain
operations of torch, and keep the dequantised weight from the forward to the backward pass, unless layers are computed
again; AWQ's dequantise once more, and compute in float16. GPTQModel makes GPTQ's by a compiled function, of which its
result alone is counted. Shapes: R rows, I inputs, O outputs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fitune import ModelError
from fitune_plugins.loaders.quantization_methods import packed_format, unpacks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WORD = 32
"""Bits that weights are packed into."""


class PackedLinear(nn.Linear):
    """A linear layer without values whose weights are packed; it has no parameters, as the real one has none."""

    def __init__(self, layer: nn.Linear, *, bits: int, group: int, along_outputs: bool) -> None:
        """`along_outputs` says which weights stand in a word: of one input (AWQ), or of one output (GPTQ)."""
        super(nn.Linear, self).__init__()
        inputs, outputs = layer.in_features, layer.out_features
        self.in_features, self.out_features, self.along_outputs = inputs, outputs, along_outputs
        groups = -(-inputs // (inputs if group == -1 else group))
        packed = (inputs, _words(outputs, bits)) if along_outputs else (_words(inputs, bits), outputs)
        sizes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "qweight": (packed, torch.int32),
            "qzeros": ((groups, _words(outputs, bits)), torch.int32),
            "scales": ((groups, outputs), torch.float16),
        }
        if not along_outputs:
            shifts = WORD // bits if WORD % bits == 0 else 3 * 12  # to unpack 3 words of 3 bits
            sizes["g_idx"] = ((inputs,), torch.int32)
            sizes |= {f"shifts_{number}": ((1, 1, shifts), torch.int32) for number in (1, 2)}
        if layer.bias is not None:
            sizes["bias"] = ((outputs,), torch.float16)
        self.register_parameter("weight", None)
        for name, (shape, dtype) in sizes.items():
            self.register_buffer(name, torch.empty(shape, dtype=dtype, device=layer.weight.device))
        if "bias" not in sizes:
            self.register_parameter("bias", None)

    def dequantized(self) -> Tensor:
        """The weight, `[I, O]`, in the scales' type."""
        scales: Any = self.scales
        return scales.new_empty((self.in_features, self.out_features))  # type: ignore[no-any-return]

    def forward(self, input: Tensor) -> Tensor:
        """Outputs `[batch, length, O]` of inputs `[batch, length, I]`."""
        shape = (*input.shape[:-1], self.out_features)
        if self.along_outputs:
            halves = input.to(torch.float16)
            product: Tensor = _Twice.apply(halves.reshape(-1, self.in_features), self)  # type: ignore[no-untyped-call]
            return product.to(input.dtype).reshape(shape)
        weight_IO = self.dequantized().to(input.dtype)
        outputs = torch.matmul(input.reshape(-1, self.in_features), weight_IO).reshape(shape)
        return outputs if self.bias is None else outputs.add_(self.bias.to(outputs.dtype))


class _Twice(torch.autograd.Function):
    """A product with a weight that is dequantised in the forward and in the backward pass."""

    @staticmethod
    def forward(ctx: Any, inputs_RI: Tensor, layer: PackedLinear) -> Tensor:
        ctx.layer = layer
        outputs_RO = torch.matmul(inputs_RI, layer.dequantized())
        return outputs_RO if layer.bias is None else outputs_RO + layer.bias

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient_RO,) = gradients
        return torch.matmul(gradient_RO, ctx.layer.dequantized().to(gradient_RO.dtype).t()), None


def _words(numbers: int, bits: int) -> int:
    return -(-numbers * bits // WORD)


def pack_shapes(model: PreTrainedModel, values: Mapping[str, Any]) -> None:
    """Put packed layers in the place of a model's linear layers, as its `quantization_config` says.

    Raises `ModelError` for a format that cannot be trained on, or whose shapes are not known.
    """
    awq = values.get("quant_method") == "awq"
    bits, group = int(values.get("bits", 4)), int(values.get("group_size", 128))
    form = packed_format(values)
    if not unpacks(values) or bits not in ((4,) if awq else (2, 3, 4, 8)) or values.get("dynamic"):
        what = "layers of several kinds (dynamic)" if values.get("dynamic") else f'{bits} bits, format "{form}"'
        raise ModelError(
            f"a checkpoint quantised by {'AWQ' if awq else 'GPTQ'} cannot be forecast: {what}. What is known is "
            f"{'4 bits, format gemm' if awq else '2, 3, 4 and 8 bits, format gptq'}"
        )
    for name in list(_of_awq(model, values) if awq else _of_gptq(model, values)):
        layer: Any = model.get_submodule(name)
        model.set_submodule(name, PackedLinear(layer, bits=bits, group=group, along_outputs=awq))


def _of_awq(model: PreTrainedModel, values: Mapping[str, Any]) -> Iterator[str]:
    """All linear layers but the head and those that the configuration names (`AwqQuantizer` of transformers)."""
    from transformers.quantizers.quantizers_utils import should_convert_module

    head, named = model.get_output_embeddings(), list(values.get("modules_to_not_convert") or ())
    for name, module in model.named_modules():
        if type(module) is nn.Linear and module is not head and should_convert_module(name, named or None):
            yield name


def _of_gptq(model: PreTrainedModel, values: Mapping[str, Any]) -> Iterator[str]:
    """Linear layers of decoder layers, or those of them that the configuration names (optimum's `GPTQQuantizer`)."""
    groups = values.get("modules_in_block_to_quantize") or ()
    ends = tuple(name for group in groups for name in ([group] if isinstance(group, str) else group))
    for name, module in model.named_modules():
        if type(module) is nn.Linear and re.search(r"\.\d+\.", name) and (not ends or name.endswith(ends)):
            yield name
