"""Keeps rows from the attention of cuDNN that may have no gradient: with a mask, and lengths of 64 modulo 128.

The backward pass of cuDNN (9.15 to 9.20 at least, on capability 9.0) reads the padded half of the last block of keys as
scores of 0. Where a row's scores are all far below that, as those of a massive activation's head, it gives no numbers
(https://github.com/pytorch/pytorch/issues/196678). Without a mask, and with other lengths, it is right. transformers
makes masks of rows longer than a sliding window, and of packed rows where variable-length attention is not to be had.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "sdpa"
"""Under which transformers finds scaled dot-product attention."""

OTHERS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""What computes such rows, the first that can."""


def may_fail(query: Tensor, key: Tensor, mask: Tensor | None) -> bool:
    """Whether the gradient of this attention, `[rows, heads, tokens, head size]`, may be no number by cuDNN."""
    if mask is None or not torch.is_grad_enabled() or query.device.type == "cpu":
        return False
    return query.shape[2] % 128 == 64 or key.shape[2] % 128 == 64


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **named: Any
) -> tuple[Tensor, None]:
    """transformers' attention by torch's scaled dot-product, `[B, H, S, D]` to `[B, S, H, D]`, by the kernel that torch
    takes first of those that are right for these rows.
    """
    if not may_fail(query, key, attention_mask):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **named)
    with sdpa_kernel(OTHERS):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **named)


def switch_on() -> None:
    """Have models of this process that compute attention by `sdpa` compute it so; once or more, nothing changes."""
    AttentionInterface.register(NAME, attention)
