"""Memory that CUDA kernels take from the caching allocator beside their results, which fake kernels do not show.

Sizes are as measured on an H100 with torch 2.11 (benchmarks/memory/kernels.json); formulas, and what they come to on
other cards, are of PyTorch's source, in the files named with each.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import torch

from fitune.memory.kernels.attention import attention_table
from fitune.memory.kernels.flash import flash_table
from fitune.memory.kernels.gpu import Gpu, Scratch
from fitune.memory.kernels.index import index_table
from fitune.memory.kernels.reduce import reduce_table
from fitune.memory.kernels.torch_version import large_workspaces, torch_version

MIB = 2**20


def cublas_workspace(capability: tuple[int, int], *, deterministic: bool = False) -> int:
    """Bytes of workspace that torch gives each cuBLAS handle (`getChosenWorkspaceSize`, CublasHandlePool.cpp)."""
    if deterministic:
        return 32 * MIB  # :4096:8, in KiB (`fitune.compose.devices`)
    return 32 * MIB if capability[0] in large_workspaces(torch_version()) else 8519680  # :4096:2:16:8, in KiB


def scratch_table(
    capability: tuple[int, int], *, deterministic: bool = False, flash: Sequence[str] = ("FA2",)
) -> dict[str, Scratch]:
    """By operation, on a usual card of this compute capability, with any of these FlashAttentions."""
    gpu = Gpu.of(capability, deterministic=deterministic)
    return {
        **attention_table(gpu),
        **flash_table(gpu, flash),
        **reduce_table(gpu),
        **index_table(gpu),
        "aten._softmax_backward_data.default": softmax_backward,
        "aten._safe_softmax.default": safe_softmax,
        "aten._log_softmax_backward_data.default": log_softmax_backward,
        "aten._grouped_mm.default": partial(grouped_mm, gpu),
        "aten.convolution.default": convolution,
        "aten.convolution_backward.default": convolution_backward,
        "aten.multinomial.default": multinomial,
        "bitsandbytes.gemm_4bit.default": partial(gemm_4bit, gpu),
    }


def softmax_backward(args: Sequence[Any], results: Any) -> list[int]:
    """`grad * output` comes first (aten/src/ATen/native/cuda/SoftMax.cu)."""
    return [args[1].numel() * args[0].element_size()]


def safe_softmax(args: Sequence[Any], results: Any) -> list[int]:
    """What is masked, the rows that are so whole, and a zero for these (ATen/native/transformers/attention.cpp)."""
    scores = args[0]
    return [scores.numel(), scores.numel() // scores.shape[args[1]], 4]


def log_softmax_backward(args: Sequence[Any], results: Any) -> list[int]:
    """A contiguous copy of the gradient where it is not (aten/src/ATen/native/cuda/SoftMax.cu)."""
    return [] if args[0].is_contiguous() else [_bytes(args[0])]


def _bytes(tensor: Any) -> int:
    return int(tensor.numel() * tensor.element_size())


def grouped_mm(gpu: Gpu, args: Sequence[Any], results: Any) -> list[int]:
    """Sizes, strides and places of each group, and the CUTLASS kernel's workspace (GroupMM.cu); elsewhere than in
    bfloat16 on capabilities 9.0 and 10.0 a loop of products.
    """
    ends = args[2] if len(args) > 2 else None
    groups = args[0].shape[0] if ends is None else ends.numel()
    if args[0].dtype != torch.bfloat16 or gpu.capability[0] not in (9, 10):
        return []
    return [60 * groups, 512 * gpu.multiprocessors]


def convolution(args: Sequence[Any], results: Any) -> list[int]:
    """cuDNN's copies of input, weight and result with channels last, each rounded up to 8 of them; depthwise ones go
    to a kernel that has none. As measured (cuDNN 9.19); other shapes may go to other algorithms.
    """
    return [] if args[8] > 1 else [_channels_last(args[0], args[1], results) + 16]


def convolution_backward(args: Sequence[Any], results: Any) -> list[int]:
    """As `convolution`, for the gradient of the input and then of the weight; up to 1.5 MiB more was measured."""
    if args[9] > 1:
        return []
    size = _channels_last(args[1], args[2], args[0])
    return [size + 1744] if results[1] is not None else [size]


def _channels_last(*tensors: Any) -> int:
    sizes = [tensor.shape[0] * -(-tensor.shape[1] // 8) * 8 * prod(tensor.shape[2:]) for tensor in tensors]
    return sum(size * tensor.element_size() for size, tensor in zip(sizes, tensors, strict=True))


def multinomial(args: Sequence[Any], results: Any) -> list[int]:
    """Flags of the checks on values, and a random number for each (aten/src/ATen/native/Distributions.cpp)."""
    return [4, 1, _bytes(args[0])]


def gemm_4bit(gpu: Gpu, args: Sequence[Any], results: Any) -> list[int]:
    """bitsandbytes dequantises the weight, and before it scales that are quantised too, except for few rows
    (`_dequant_linear_fallback`, bitsandbytes/backends/cuda/ops.py). How few depends on the weight's shape and the card;
    here it is the most of its rules for large weights.
    """
    data, (outputs, inputs) = args[0], args[2]
    rows = data.numel() // inputs
    if rows <= {9: 64, 10: 32}.get(gpu.capability[0], 128):
        return []
    quantised = args[7] if len(args) > 7 else None
    scales = [] if quantised is None else [4 * quantised.numel()] * 2
    return [*scales, outputs * inputs * data.element_size()]
