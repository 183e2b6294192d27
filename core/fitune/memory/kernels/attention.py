"""Scratch of attention kernels. Shapes: B rows, H heads, K heads of keys and values, S tokens, D head size, T tokens of
all documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fitune.memory.kernels.gpu import Gpu, Scratch

HALF = (torch.bfloat16, torch.float16)


def attention_table(gpu: Gpu) -> dict[str, Scratch]:
    """By operation."""
    return {
        "aten._scaled_dot_product_cudnn_attention.default": cudnn_forward,
        "aten._scaled_dot_product_cudnn_attention_backward.default": cudnn_backward,
        "aten._scaled_dot_product_flash_attention.default": partial(flash_forward, gpu),
        "aten._scaled_dot_product_flash_attention_backward.default": partial(flash_backward, gpu),
        "aten._flash_attention_forward.default": dropout_forward,
        "aten._flash_attention_backward.default": partial(varlen_backward, gpu),
        "torch_attn._varlen_attn.default": varlen_forward,
        "torch_attn._varlen_attn_backward.default": partial(varlen_backward, gpu),
        "aten._scaled_dot_product_efficient_attention.default": efficient_forward,
        "aten._scaled_dot_product_efficient_attention_backward.default": partial(efficient_backward, gpu),
    }


def up(number: int, multiple: int) -> int:
    """Rounded up to a multiple."""
    return -(-number // multiple) * multiple


def cudnn_forward(args: Sequence[Any], results: Any) -> list[int]:
    """A small workspace (measured with cuDNN 9.19)."""
    return [256]


def cudnn_backward(args: Sequence[Any], results: Any) -> list[int]:
    """One workspace: float32 sums of the queries' gradient and of each row, and for grouped heads gradients of keys and
    values a query head. A formula that every measured case obeys (cuDNN 9.19, capability 9.0).
    """
    query, key, value = args[1], args[2], args[3]
    B, H, S, D = query.shape
    grouped = 0
    if key.shape[1] != H:
        grouped = B * H * key.shape[2] * (key.shape[3] + value.shape[3]) * query.element_size()
    return [4 * B * H * S * (D + 1) + 256 + grouped]


def flash_forward(gpu: Gpu, args: Sequence[Any], results: Any) -> list[int]:
    """Partial results where few blocks of queries share the keys (`num_splits_heuristic` and `set_params_splitkv` of
    aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp); with dropout, which never splits, the state of
    the random numbers.
    """
    query, key = args[0], args[1]
    if len(args) > 3 and args[3] > 0:
        return [16]
    B, H, S, D = query.shape
    blocks = B * H * -(-S // 64)
    parts = -(-key.shape[2] // (256 if D <= 64 else 128 if D <= 128 else 64))
    at_once = 2 * gpu.multiprocessors
    if blocks >= 0.8 * at_once:
        return []
    splits = _splits(blocks, parts, at_once)
    if splits <= 1:
        return []
    return [4 * splits * B * H * S, 4 * splits * B * H * S * _rounded_head(D)]


def _splits(blocks: int, parts: int, at_once: int) -> int:
    """The fewest splits that are nearly as good as the best."""
    quality: dict[int, float] = {}
    for splits in range(1, min(128, at_once, parts) + 1):
        if splits == 1 or -(-parts // splits) != -(-parts // (splits - 1)):
            waves = blocks * splits / at_once
            quality[splits] = waves / -(-blocks * splits // at_once)
    best = max(quality.values())
    return next(splits for splits, good in quality.items() if good >= 0.85 * best)


def _rounded_head(size: int) -> int:
    return up(size, 32) if size <= 128 else up(size, 64)


def flash_backward(gpu: Gpu, args: Sequence[Any], results: Any) -> list[int]:
    """Each row's delta and a float32 sum of the queries' gradient, or several where it must be deterministic; for
    grouped heads gradients of keys and values a query head; copies of what is not contiguous as [B, S, H, D]
    (`mha_bwd`, flash_api.cpp).
    """
    query, key = args[1], args[2]
    B, H, S, D = query.shape
    copies = [tensor.nbytes for tensor in (args[0], args[4]) if not tensor.transpose(1, 2).is_contiguous()]
    tokens = up(S, 128)
    sums = [4 * B * H * tokens, 4 * _sums(gpu, B * H) * B * tokens * H * _rounded_head(D)]
    grouped = [B * key.shape[2] * H * D * query.element_size()] * 2 if key.shape[1] != H else []
    return [*copies, *sums, *grouped]


def _sums(gpu: Gpu, heads: int) -> int:
    """Blocks that share a head each have a sum of their own where their order must not count."""
    return -(-gpu.multiprocessors // heads) if gpu.deterministic else 1


def dropout_forward(args: Sequence[Any], results: Any) -> list[int]:
    """The state of random numbers, with dropout alone."""
    return [16] if args[7] > 0 else []


def varlen_forward(args: Sequence[Any], results: Any) -> list[int]:
    """The state of random numbers."""
    return [16]


def varlen_backward(gpu: Gpu, args: Sequence[Any], results: Any) -> list[int]:
    """As `flash_backward`, with 128 tokens more a document (`mha_varlen_bwd`, flash_api.cpp). Heads: [T, H, D]."""
    query, key, ends = args[1], args[2], args[6]
    if ends is None:
        dense = [tensor.transpose(1, 2) for tensor in args[:5]]
        return flash_backward(gpu, dense, results)
    T, H, D = query.shape
    documents = ends.numel() - 1
    tokens = T + 128 * documents
    copies = [tensor.nbytes for tensor in (args[0], args[4]) if not tensor.is_contiguous()]
    sums = [4 * H * tokens, 4 * _sums(gpu, documents * H) * tokens * H * _rounded_head(D)]
    grouped = [key.shape[0] * H * D * query.element_size()] * 2 if key.shape[1] != H else []
    return [*copies, *sums, *grouped]


def efficient_forward(args: Sequence[Any], results: Any) -> list[int]:
    """A float32 sum of the results where half precision has heads over 128 (`_efficient_attention_forward`,
    aten/src/ATen/native/transformers/cuda/attention.cu).
    """
    query, value = args[0], args[2]
    B, H, S, _ = query.shape
    wide = query.dtype in HALF and value.shape[-1] > 128
    return [4 * B * H * S * value.shape[-1]] if wide else []


def efficient_backward(gpu: Gpu, args: Sequence[Any], results: Any) -> list[int]:
    """Each row's delta, and a workspace of float32 sums of gradients (`_efficient_attention_backward`,
    aten/src/ATen/native/transformers/cuda/attention_backward.cu; `workspace_size`, kernel_backward.h).

    Keys are not shared out where it must be deterministic. float32 has its delta from a product that is summed, and
    sums of the queries' gradient alone.
    """
    query, key, value = args[1], args[2], args[3]
    B, H, S, D = query.shape
    dropped = len(args) > 9 and args[9] > 0
    rows, columns, of_keys = _tiles(query, max(D, value.shape[-1]), gpu.capability, dropped=dropped)
    splits = 1 if gpu.deterministic else _key_splits(B * H, key.shape[2], columns, of_keys=of_keys)
    of_query = -(-S // rows) * -(-D // columns) * (rows * columns + 4)
    grads = sum(splits * columns * up(size, rows) for size in (D, value.shape[-1])) if of_keys else 0
    workspace = 4 * B * H * up(of_query + grads, 4)
    delta = 4 * B * H * S
    if query.dtype in HALF:
        return [delta, workspace]
    return [4 * B * H * S * value.shape[-1], delta, delta, -2, -1, workspace]


def _tiles(query: Tensor, size: int, capability: tuple[int, int], *, dropped: bool) -> tuple[int, int, bool]:
    """Queries and keys of a block, and whether keys' gradients are summed in the workspace too."""
    if query.dtype not in HALF:
        return (64, 64, False) if size <= 64 or capability < (8, 0) else (128, 64, False)
    if size > 128:
        return 128, 64, True
    if size <= 64 or capability < (8, 0):
        return 64, 64, size > 64
    if capability in ((8, 6), (8, 9)):
        return (128, 64, size > 64) if size <= 96 and not dropped else (64, 64, True)
    return 128, 128, False


def _key_splits(heads: int, keys: int, columns: int, *, of_keys: bool) -> int:
    splits = -(-keys // columns)
    if heads >= 256 and keys <= 2 * columns:
        return 1
    return max(min(splits, 200 // heads), 1) if of_keys else splits
