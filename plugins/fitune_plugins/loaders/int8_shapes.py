"""What a layer of bitsandbytes in 8 bits takes of a card, in operations of torch, for models without values.

LLM.int8(), Dettmers et al., arXiv 2208.07339: rows of the inputs are quantised too, but for columns with outliers,
whose number depends on the values. The order is that of `MatMul8bitLt` and of its CUDA kernels in bitsandbytes 0.50.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

OUTLIERS = 128
"""One in so many columns is taken for one with outliers, over ten times the paper's share (0.1 %)."""


def int8_linear(inputs: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None, outliers: bool) -> Tensor:
    """A linear layer's outputs `[batch, length, out]` of inputs `[batch, length, in]`, without values."""
    result: Tensor = _Int8Linear.apply(inputs, weight, scales, bias, outliers)  # type: ignore[no-untyped-call]
    return result


class _Int8Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None, outliers: bool
    ) -> Tensor:
        inputs_RI = inputs.reshape(-1, inputs.shape[-1])
        rounded_RI = _rounded(inputs_RI.to(torch.float16), outliers)
        outputs_RO, apart = _product(inputs_RI, rounded_RI, weight, bias, outliers)
        if ctx.needs_input_grad[0]:
            ctx.kept = inputs_RI, apart
        ctx.weight, ctx.scales, ctx.shape = weight, scales, inputs.shape
        return outputs_RO.reshape(*inputs.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        gradient_RO = gradients[0].reshape(-1, gradients[0].shape[-1]).contiguous()
        dtype = ctx.kept[0].dtype
        weight_OI = ctx.weight.to(dtype, copy=True).mul_(ctx.scales.unsqueeze(1).mul(1.0 / 127.0))
        return torch.matmul(gradient_RO.to(dtype), weight_OI).view(ctx.shape), None, None, None, None


def _rounded(half_RI: Tensor, outliers: bool) -> Tensor:
    """The inputs in 8 bits."""
    scales_R = half_RI.new_empty(len(half_RI), dtype=torch.float32)
    rounded_RI = half_RI.new_empty(half_RI.shape, dtype=torch.int8)
    if outliers:
        (half_RI.abs() >= 6.0).any(dim=0)
    del scales_R
    return rounded_RI


def _product(
    inputs_RI: Tensor, rounded_RI: Tensor, weight_OI: Tensor, bias: Tensor | None, outliers: bool
) -> tuple[Tensor, Tensor | None]:
    """The outputs, by way of 32-bit integers and float16; and the columns that are kept apart."""
    apart = inputs_RI[:, : -(-inputs_RI.shape[1] // OUTLIERS)].contiguous() if outliers else None
    sums_RO = inputs_RI.new_empty((len(inputs_RI), len(weight_OI)), dtype=torch.int32)
    half_RO = sums_RO.new_empty(sums_RO.shape, dtype=torch.float16)
    if bias is not None and bias.dtype != torch.float16:
        half_RO.add_(bias)
    outputs_RO = half_RO.to(inputs_RI.dtype)
    del sums_RO, half_RO
    if apart is not None:
        others = weight_OI[:, : apart.shape[1]].to(inputs_RI.dtype).t()
        outputs_RO = outputs_RO.addmm(apart, others)
    return outputs_RO, apart
