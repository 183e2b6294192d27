"""Memory that CUDA kernels take from the caching allocator beside their results, which fake kernels do not show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fitune.forecast.trace import Scratch

MIB = 2**20


def cublas_workspace(capability: tuple[int, int]) -> int:
    """Bytes of workspace that torch gives each cuBLAS handle (`getChosenWorkspaceSize`, CublasHandlePool.cpp)."""
    return 32 * MIB if capability[0] == 9 else 8519680  # :4096:2:16:8, in KiB


def scratch_table() -> dict[str, Scratch]:
    """By operation."""
    return {
        "aten._softmax_backward_data.default": softmax_backward,
        "aten._scaled_dot_product_flash_attention_backward.default": flash_backward,
        "aten._scaled_dot_product_efficient_attention_backward.default": efficient_backward,
    }


def softmax_backward(args: Sequence[Any], results: Any) -> list[int]:
    """`grad * output` comes first."""
    return [args[1].numel() * args[1].element_size()]


def flash_backward(args: Sequence[Any], results: Any) -> list[int]:
    """A float32 sum of the queries' gradient, and of each row's softmax."""
    rows, heads, tokens, size = args[1].shape
    size = -(-size // 32) * 32 if size <= 128 else -(-size // 64) * 64
    tokens = -(-tokens // 128) * 128
    return [rows * heads * tokens * size * 4, rows * heads * tokens * 4]


def efficient_backward(args: Sequence[Any], results: Any) -> list[int]:
    """Each row's delta, and float32 sums of gradients."""
    rows, heads, tokens, size = args[1].shape
    return [rows * heads * tokens * 4, rows * heads * tokens * size * 4]
