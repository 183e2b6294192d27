"""Scratch of reductions: partial sums of thread blocks that share an output, and norms' weight gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fitune.memory.kernels.gpu import Gpu, Scratch

THREADS = 512
"""Of a block of a reduction, at most (`MAX_NUM_THREADS`, aten/src/ATen/native/cuda/Reduce.cuh)."""


def reduce_table(gpu: Gpu) -> dict[str, Scratch]:
    """By operation."""

    def along(args: Sequence[Any], results: Any) -> list[int]:
        return of_tensor(args[0], args[1] if len(args) > 1 else None, _accumulator(args[0], results), gpu)

    def whole(args: Sequence[Any], results: Any) -> list[int]:
        return of_tensor(args[0], None, _accumulator(args[0], results), gpu)

    def compared(args: Sequence[Any], results: Any) -> list[int]:
        dims = args[1] if len(args) > 1 else None
        return of_tensor(args[0], dims, args[0].element_size(), gpu)

    def normed(args: Sequence[Any], results: Any) -> list[int]:
        return of_tensor(args[0], args[2] if len(args) > 2 else None, _accumulator(args[0], results), gpu)

    def layer_norm(args: Sequence[Any], results: Any) -> list[int]:
        return weight_gradients(args[1], [result for result in results[1:] if result is not None], gpu)

    def rms_norm(args: Sequence[Any], results: Any) -> list[int]:
        return weight_gradients(args[1], [result for result in results[1:] if result is not None], gpu)

    return {
        "aten.sum.default": whole,
        "aten.sum.dim_IntList": along,
        "aten.mean.default": whole,
        "aten.mean.dim": along,
        "aten.max.default": compared,
        "aten.min.default": compared,
        "aten.amax.default": compared,
        "aten.amin.default": compared,
        "aten.linalg_vector_norm.default": normed,
        "aten._foreach_norm.Scalar": foreach_norm,
        "aten.logsumexp.default": logsumexp,
        "aten.native_layer_norm_backward.default": layer_norm,
        "aten._fused_rms_norm_backward.default": rms_norm,
    }


def _accumulator(tensor: Tensor, result: Tensor) -> int:
    """Bytes of the type that it sums in: float32 for halves, int64 for integers."""
    return max(4, result.element_size()) if tensor.is_floating_point() else 8


def of_tensor(tensor: Tensor, dims: Any, accumulator: int, gpu: Gpu) -> list[int]:
    """Scratch of a reduction of a tensor over some of its dimensions, or all."""
    chosen = range(tensor.dim()) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    gone = {dim % max(tensor.dim(), 1) for dim in chosen}
    sizes, strides = tensor.shape, tensor.stride()
    order = sorted((strides[dim] or 1 << 62, dim) for dim in range(tensor.dim()) if sizes[dim] > 1)
    inputs = outputs = inner = 1
    for _, dim in order:
        if dim in gone:
            inputs *= sizes[dim]
        else:
            outputs *= sizes[dim]
    if inputs == 1:
        return []
    kept_first = order[0][1] not in gone
    for _, dim in order if kept_first else ():
        if dim in gone:
            break
        inner *= sizes[dim]
    return reduction(inputs, outputs, inner if kept_first else 0, accumulator, gpu)


def reduction(inputs: int, outputs: int, inner: int, accumulator: int, gpu: Gpu) -> list[int]:
    """Bytes of partial sums and of semaphores, where blocks of threads share an output.

    `inputs` are those of one output. `inner` is the length of the fastest dimension if that is kept, or 0 if it is
    reduced. As `setReduceConfig` of aten/src/ATen/native/cuda/Reduce.cuh, with `vt0` and vectors of 4.
    """
    vector, width, height = 1, inputs, outputs
    if inner:
        vector, width, height = 4, outputs, inputs
        while inner % vector:
            vector //= 2
        width //= vector
    elif outputs == 1 and width >= 128:
        width //= 4
    most = THREADS // vector
    wide, high = (_power_below(size) if size < most else most for size in (width, height))
    x = min(wide, 32)
    y = min(high, most // x)
    x = min(wide, most // y)
    per_input, per_output = (1, x) if inner else (x, 1)
    split = -(-inputs // per_input) >= min(y * 16, 256)
    if split:
        per_input *= y
    else:
        per_output *= y
    values = -(-inputs // per_input)
    grid = -(-(outputs // vector) // per_output)
    target = gpu.multiprocessors * (gpu.threads // (x * y))
    blocks = 1
    if split and values >= 256 and grid <= target:
        blocks = max(min(-(-target // grid), -(-values // 16)), -(-values // 256))
    if blocks <= 1:
        return []
    return [accumulator * outputs * blocks * (x * vector if inner else 1), 4 * grid]


def _power_below(number: int) -> int:
    return 1 << (number.bit_length() - 1)


def weight_gradients(rows_tensor: Tensor, gradients: list[Tensor], gpu: Gpu) -> list[int]:
    """Partial sums of a norm's weight and bias gradients where rows are many and narrow.

    `LaunchGammaBetaBackwardCUDAKernel` of aten/src/ATen/native/cuda/layer_norm_kernel.cu: above 65536 rows, and where
    the width's blocks of 32 are under half the multiprocessors; each partial is then summed over its rows.
    """
    if not gradients:
        return []
    width = gradients[0].numel()
    rows = rows_tensor.numel() // width
    if rows <= 65536 or -(-width // 32) >= gpu.multiprocessors // 2:
        return []
    parts = min(32768 // -(-width // 32), -(-rows // 32))
    sizes = [parts * width * gradient.element_size() for gradient in gradients]
    for gradient in gradients:
        summed = reduction(parts, width, width, 4, gpu)
        first = len([size for size in sizes if size > 0]) + 1
        sizes += [gradient.nbytes, *summed]
        sizes += [-number for number in range(first + len(summed), first - 1, -1)]
    return sizes


def foreach_norm(args: Sequence[Any], results: Any) -> list[int]:
    """A float32 partial a chunk of 65536 numbers, of as many chunks as the largest tensor has, for every tensor
    (aten/src/ATen/native/cuda/ForeachReduceOp.cu).
    """
    tensors: list[Tensor] = args[0]
    largest = max((tensor.numel() for tensor in tensors), default=0)
    wide = 8 if tensors and tensors[0].dtype == torch.float64 else 4
    return [len(tensors) * -(-largest // 65536) * wide]


def logsumexp(args: Sequence[Any], results: Tensor) -> list[int]:
    """Maxima, whether they are infinite, and the exponentials (aten/src/ATen/native/ReduceOps.cpp)."""
    return [results.nbytes, results.nbytes, results.numel(), -3, -2, args[0].numel() * results.element_size()]
