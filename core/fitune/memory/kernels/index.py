"""Scratch of indexing, embeddings' gradients and sorting, with the temporaries of CUB that they use."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from fitune.memory.kernels.gpu import Gpu, Scratch

TILE = 5376
"""Items of a tile of CUB's radix sort, for keys of 4 bytes with int64 values (fits every measured size)."""

ONE_TILE = 2304
"""Items up to which CUB sorts int64 pairs in one block, with no temporary worth the name."""


def index_table(gpu: Gpu) -> dict[str, Scratch]:
    """By operation."""
    return {
        "aten.embedding_dense_backward.default": embedding_backward,
        "aten.index_put.default": index_put,
        "aten.index_put_.default": index_put,
        "aten._index_put_impl_.default": index_put,
        "aten.nonzero.default": nonzero,
        "aten.nonzero_static.default": nonzero_static,
        "aten.sort.default": sort,
        "aten.sort.stable": stable_sort,
        "aten.cumsum.default": cumsum,
        "aten.topk.default": partial(topk, gpu),
    }


def radix_sort(items: int, key: int, value: int) -> int:
    """Bytes of CUB's temporary for sorting pairs: both once more, a histogram for each byte of a key, a state for
    each tile, and what aligning them takes (`DeviceRadixSort`, onesweep).
    """
    if items <= ONE_TILE:
        return 1
    return items * (key + value) + key * 256 * 8 + -(-items // TILE) * 1024 + 511


def embedding_backward(args: Sequence[Any], results: Any) -> list[int]:
    """Above 3072 ids: they are sorted, and partial sums of runs of equal ones are made in float32
    (aten/src/ATen/native/cuda/Embedding.cu and EmbeddingBackwardKernel.cu).
    """
    grad, ids, vocabulary = args[0], args[1].numel(), args[2]
    if ids <= 3072:
        return []
    segments = min(ids, vocabulary)
    parts = ids // 10 + segments
    whole = 8 * ids
    sorting = [whole, whole, whole, radix_sort(ids, 8, 8), -4, -3]
    return [*sorting, whole, 8, whole, whole, 8, 8 * parts, 4 * parts * grad.shape[-1]]


def index_put(args: Sequence[Any], results: Any) -> list[int]:
    """What is added up by index has its places sorted (`index_put_with_sort_kernel`, cuda/Indexing.cu)."""
    indices = [index for index in args[1] if index is not None]
    if len(args) < 4 or not args[3] or not indices:
        return []
    items = max(index.numel() for index in indices)
    whole = 8 * items
    values: Tensor = args[2]
    rest = 1
    for size in args[0].shape[len(args[1]) :]:
        rest *= size
    expanded = [items * rest * values.element_size()] if values.numel() < items * rest else []
    return [whole, whole, -1, *expanded, whole, whole, whole, radix_sort(items, 8, 8)]


def nonzero(args: Sequence[Any], results: Any) -> list[int]:
    """A copy of what is not contiguous, a counter, a temporary of CUB (aten/src/ATen/native/cuda/Nonzero.cu)."""
    copied = [] if args[0].is_contiguous() else [args[0].numel() * args[0].element_size()]
    return [*copied, 4, 1279]


def nonzero_static(args: Sequence[Any], results: Any) -> list[int]:
    """Counters (aten/src/ATen/native/cuda/Nonzero.cu)."""
    return [4, 8]


def sort(args: Sequence[Any], results: Any) -> list[int]:
    """By (tensor, dim)."""
    return _sort(args[0], args[1] if len(args) > 1 else -1)


def stable_sort(args: Sequence[Any], results: Any) -> list[int]:
    """By (tensor), the rest by name: along the last dimension, as it is used."""
    return _sort(args[0], -1)


def _sort(tensor: Tensor, dim: int) -> list[int]:
    """Indices, and a temporary of CUB (aten/src/ATen/native/cuda/Sort.cpp and SortStable.cu); short rows are sorted in
    shared memory.
    """
    if tensor.numel() == 0 or tensor.shape[dim] <= 1024:
        return [512]
    items = tensor.numel()
    places, temporary = 8 * items, radix_sort(items, tensor.element_size(), 8)
    if items == tensor.shape[dim]:
        return [places, temporary]
    return [places, places, items * tensor.element_size(), temporary]


def cumsum(args: Sequence[Any], results: Any) -> list[int]:
    """CUB's temporary where there is one row (aten/src/ATen/native/cuda/ScanUtils.cuh)."""
    return [1279] if args[0].dim() and args[0].numel() == args[0].shape[args[1]] else []


def topk(gpu: Gpu, args: Sequence[Any], results: Any) -> list[int]:
    """Counts of digits for each block, where rows are long enough that several share one
    (aten/src/ATen/native/cuda/TensorTopK.cu).
    """
    tensor = args[0]
    size = tensor.shape[args[2] if len(args) > 2 else -1]
    rows = tensor.numel() // max(size, 1)
    limits = ((20, 20000), (40, 10000), (80, 8000), (200, 5000), (800, 3000), (4000, 800))
    if size < next((least for most, least in limits if rows <= most), 400):
        return []
    per_thread = min(max(-(-size * rows // (6 * gpu.multiprocessors * 256)), 4), 64)
    blocks = rows * -(-size // (256 * per_thread))
    return [4 * rows, 8 * rows, 8 * rows, 512 * blocks, 1024 * rows, 4 * blocks, 4 * blocks, 1279]
