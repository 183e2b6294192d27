"""Numbers of 8 bits with a scale for each row: what tensor cores multiply at twice bfloat16's rate.

`float8_e4m3fn` (Micikevicius et al., arXiv 2209.05433): 3 bits of mantissa, 448 at most. A row's largest number becomes
448, so that rows of any size lose the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fitune_plugins.speed.kernels.library import operation, wide

LARGEST = 448.0
"""Of the type."""

SMALLEST = 1e-30
"""A row's largest number is taken for no less: rows of zeros have a scale too. Gradients of a token may be as small as
1e-10, and smaller by a weight's scale."""


def to_fp8(x: Tensor, columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`x [M, K]` in 8 bits, and the scale of each row `[M, 1]` in float32; `x` times `columns [K]`, where given."""
    return _to_fp8(x, columns)  # type: ignore[no-any-return]


def transposed(x: Tensor) -> Tensor:
    """The transpose of numbers of 8 bits, `[M, K]` to `[K, M]`, laid out anew."""
    return _transposed(x)  # type: ignore[no-any-return]


def product(x8: Tensor, x_scale: Tensor, right8: Tensor, right_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """`x [M, K] @ right [N, K]^T` of numbers in 8 bits with scales `[M, 1]` and `[1, N]`, in bfloat16.

    By tensor cores on CUDA and where there are no values, else by the same numbers in float32.
    """
    if x8.device.type == "cpu":
        made = (x8.float() * x_scale) @ (right8.float() * right_scale.t()).t()
        return made.to(dtype)
    return torch._scaled_mm(x8, right8.t(), scale_a=x_scale, scale_b=right_scale, out_dtype=dtype, use_fast_accum=True)


def _to_fp8_cpu(x: Tensor, columns: Tensor | None) -> tuple[Tensor, Tensor]:
    values = wide(x).float() if columns is None else wide(x).float() * columns
    scale = values.abs().amax(1, keepdim=True).clamp_min(SMALLEST) / LARGEST
    return (values / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scale


def _to_fp8_meta(x: Tensor, columns: Tensor | None) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=torch.float8_e4m3fn), x.new_empty((len(x), 1), dtype=torch.float32)


def _transposed_cpu(x: Tensor) -> Tensor:
    return x.view(torch.uint8).t().contiguous().view(x.dtype)


def _transposed_meta(x: Tensor) -> Tensor:
    return x.new_empty((x.shape[1], x.shape[0]))


_to_fp8 = operation(
    "to_fp8(Tensor x, Tensor? columns) -> (Tensor, Tensor)",
    cpu=_to_fp8_cpu,
    meta=_to_fp8_meta,
    cuda="triton_fp8.to_fp8",
)
_transposed = operation(
    "transposed8(Tensor x) -> Tensor", cpu=_transposed_cpu, meta=_transposed_meta, cuda="triton_fp8.transposed"
)
