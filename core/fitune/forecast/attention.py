"""Which kernel torch's scaled dot-product attention takes on a card, and that kernel, called without values.

Elsewhere torch would take the composite one, which keeps the whole matrix of scores. Shapes: B rows, H heads, S
tokens, D head size.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

Kernel = Literal["cudnn", "flash", "efficient", "math"]
HALF = (torch.bfloat16, torch.float16)


def choose(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, capability: tuple[int, int]
) -> Kernel:
    """The kernel that torch takes for these inputs on a card of this compute capability.

    The rules are those of `aten/src/ATen/native/transformers/cuda/sdp_utils.cpp`: in order of preference cuDNN (on
    9.0 and 10.0 alone), flash, memory-efficient, math.
    """
    size, half = query.shape[-1], query.dtype in HALF
    same_size = size == value.shape[-1]
    if capability in ((9, 0), (10, 0)) and half and size <= 128 and value.shape[-1] <= 128 and size % 8 == 0:
        return "cudnn"
    known = query.dtype == torch.float16 or capability >= (8, 0)
    if mask is None and half and known and capability >= (8, 0) and size <= 256 and same_size:
        return "flash"
    if (half and known) or query.dtype == torch.float32:
        return "efficient"
    return "math"


def attend(
    kernel: Kernel,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    causal: bool,
    scale: float | None,
) -> Tensor:
    """Attention by a kernel, `[B, H, S, D]` to `[B, H, S, D]`, with all that its CUDA dispatch does around it."""
    aten: Any = torch.ops.aten
    out: Tensor
    if kernel == "flash":
        width = query.shape[-1]
        if width % 8:  # sdpa pads heads to a multiple of 8 and cuts the result
            pad = 8 - width % 8
            query, key, value = (torch.nn.functional.pad(t, (0, pad)) for t in (query, key, value))
            scale = width**-0.5 if scale is None else scale
        out = aten._scaled_dot_product_flash_attention(query, key, value, dropout, causal, scale=scale)[0]
        return out[..., :width]  # a view
    if key.shape[1] != query.shape[1] and kernel != "cudnn":
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if mask is not None:
        mask = _as_bias(mask, query)
    if kernel == "cudnn":
        out = aten._scaled_dot_product_cudnn_attention(
            query, key, value, mask, query.requires_grad, dropout, causal, False, scale=scale
        )[0]
    elif kernel == "efficient":
        if mask is not None:
            mask = mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
        out = aten._scaled_dot_product_efficient_attention(
            query, key, value, mask, torch.is_grad_enabled(), dropout, causal, scale=scale
        )[0]
    else:
        out = aten._scaled_dot_product_attention_math(query, key, value, mask, dropout, causal, scale=scale)[0]
    return out


def _as_bias(mask: Tensor, query: Tensor) -> Tensor:
    """A boolean mask becomes a float one (`convert_boolean_attn_mask`)."""
    if mask.dtype != torch.bool:
        return mask
    bias = torch.zeros_like(mask, dtype=query.dtype)
    return bias.masked_fill_(mask.logical_not(), float("-inf"))
