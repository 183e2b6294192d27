"""Scratch of FlashAttention 3 and 4 in rows of several documents, where they stand in for torch's own.

By their sources (`mha_fwd` and `mha_bwd`, hopper/flash_api.cpp; `_flash_attn_bwd`, flash_attn/cute/interface.py), not
measured. Shapes: T tokens of all documents, H heads, K heads of keys and values, D head size, N documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from fitune.memory.kernels.attention import varlen_backward, varlen_forward
from fitune.memory.kernels.gpu import Gpu, Scratch

SIZES = (64, 96, 128, 192, 256)
"""Head sizes that FlashAttention 3 has kernels for; others are computed as the next."""


def flash_table(gpu: Gpu, flash: Sequence[str]) -> dict[str, Scratch]:
    """By operation, of what stands in for torch's own; of several that may, the one that takes most; empty where
    nothing does.
    """
    if not set(flash) - {"FA2"}:
        return {}
    forward, backward = zip(*(_of(gpu, name) for name in flash), strict=True)
    return {
        "torch_attn._varlen_attn.default": partial(_most, forward),
        "torch_attn._varlen_attn_backward.default": partial(_most, backward),
        "aten._flash_attention_backward.default": partial(_most, backward),
    }


def _of(gpu: Gpu, name: str) -> tuple[Scratch, Scratch]:
    """Of its forward and its backward pass."""
    if name == "FA2":
        return varlen_forward, partial(varlen_backward, gpu)
    gpu = replace(gpu, flash=name)
    return partial(_forward, gpu), partial(_backward, gpu)


def _most(each: Sequence[Scratch], args: Sequence[Any], results: Any) -> list[int]:
    """The sizes that are the most together."""
    return max((list(scratch(args, results)) for scratch in each), key=sum)


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _forward(gpu: Gpu, args: Sequence[Any], results: Any) -> list[int]:
    """What torch makes in place of random numbers, and FlashAttention 3's plan of blocks: two vectors of documents, one
    more where they are sorted (without a window) and one for their order in the cache.
    """
    ends, causal = args[3], bool(args[7])
    if gpu.flash == "FA4":
        return [16, 8]
    documents = _up(ends.numel() - 1, 4)
    return [4 * (1 + documents * (4 if causal else 3)), 16, 8]


def _backward(gpu: Gpu, args: Sequence[Any], results: Any) -> list[int]:
    """Two numbers a row, float32 sums of the queries' gradient, and for grouped heads of the keys' and values'; of
    FlashAttention 3 also a turn for each block of queries.
    """
    query, key, ends, longest = args[1], args[2], args[6], int(args[8])
    T, H, D = query.shape
    documents = ends.numel() - 1
    rows, columns = _blocks(gpu, D)
    tokens, keys = _up(T + documents * rows, rows), _up(key.shape[0] + documents * columns, columns)
    size = next(size for size in SIZES if size >= D) if gpu.flash == "FA3" else _up(D, 32)
    sizes = [4 * H * tokens, 4 * H * tokens, 4 * H * tokens * size]
    if key.shape[1] != H:
        sizes += [4 * key.shape[1] * keys * size] * 2
    return [*sizes, 4 * -(-longest // rows) * documents * H] if gpu.flash == "FA3" else sizes


def _blocks(gpu: Gpu, size: int) -> tuple[int, int]:
    """Queries and keys of a block, under a causal mask."""
    if gpu.flash == "FA4" and gpu.capability[0] >= 10:
        return 128, 128
    return 128 if size <= 64 else 64, 128 if size <= 128 else 96 if size <= 192 else 80
