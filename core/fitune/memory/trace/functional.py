"""Functions of `torch.nn.functional` that CUDA computes by other operations than tensors without values are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fitune.memory.kernels.torch_version import Version
from fitune.memory.trace.attention import attend, choose
from fitune.memory.trace.values import mark_one_hot


class FusedRmsNorm(torch.autograd.Function):
    """`aten._fused_rms_norm`, which is one kernel on a card, and is composed of others elsewhere."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, shape: list[int], weight: Tensor | None) -> Tensor:
        """The result; kept is one number a row, in float32 for halves."""
        rows = input.shape[: input.dim() - len(shape)] + (1,) * len(shape)
        out = torch.empty_like(input, memory_format=torch.contiguous_format)
        scale = input.new_empty(rows, dtype=torch.promote_types(input.dtype, torch.float32))
        ctx.save_for_backward(input, weight, scale)
        ctx.shape = shape
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor | None]:
        """Of the input and the weight."""
        input, weight, scale = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[2]]
        of_input, of_weight = torch.ops.aten._fused_rms_norm_backward(grad, input, ctx.shape, scale, weight, wanted)
        return of_input, None, of_weight


def functions(
    capability: tuple[int, int], version: Version, *, deterministic: bool = False
) -> dict[str, Callable[..., Tensor]]:
    """By name, as on a card of this compute capability with a torch of this version."""
    before = F.softmax, F.dropout, F.rms_norm, F.one_hot
    plain_softmax, plain_dropout, plain_rms_norm, plain_one_hot = before

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        kernel = choose(
            query,
            key,
            value,
            attn_mask,
            dropout_p,
            is_causal,
            capability,
            version,
            grouped=enable_gqa,
            deterministic=deterministic,
        )
        return attend(kernel, query, key, value, attn_mask, dropout_p, is_causal, scale, grouped=enable_gqa)

    def softmax(
        input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
    ) -> Tensor:
        if dtype is torch.float32 and input.dtype is torch.float16 and dim is not None:
            return torch.ops.aten._softmax(input, dim, True)  # type: ignore[no-any-return]  # one kernel, no copy
        return plain_softmax(input, dim, dtype=dtype)

    def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if training and 0 < p < 1 and not inplace:
            return torch.ops.aten.native_dropout(input, p, True)[0]  # type: ignore[no-any-return]  # a mask of bytes
        return plain_dropout(input, p, training, inplace)

    def rms_norm(
        input: Tensor, normalized_shape: list[int], weight: Tensor | None = None, eps: float | None = None
    ) -> Tensor:
        if input.is_meta and (weight is None or weight.dtype == input.dtype):
            return FusedRmsNorm.apply(input, normalized_shape, weight)  # type: ignore[no-any-return, no-untyped-call]
        return plain_rms_norm(input, normalized_shape, weight, eps)

    def one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
        if num_classes < 0:
            return plain_one_hot(tensor, num_classes)
        mask = tensor.new_zeros((*tensor.shape, num_classes)).scatter_(-1, tensor.unsqueeze(-1), 1)
        return mark_one_hot(mask, tensor)

    return {
        "scaled_dot_product_attention": attention,
        "softmax": softmax,
        "dropout": dropout,
        "rms_norm": rms_norm,
        "one_hot": one_hot,
    }
