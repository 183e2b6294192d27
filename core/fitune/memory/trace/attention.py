"""Which kernel torch's scaled dot-product attention takes on a card, and that kernel, called without values.

Elsewhere torch would take the composite one, which keeps the whole matrix of scores. Shapes: B rows, H heads, K heads
of keys and values, S tokens, D head size.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from fitune.memory.kernels.torch_version import Version

Kernel = Literal["cudnn", "flash", "efficient", "math"]

HALF = (torch.bfloat16, torch.float16)

NEWER = (2, 14)
"""The release assumed to be the first with the rules that PyTorch has now and torch 2.13 has not."""


def choose(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    causal: bool,
    capability: tuple[int, int],
    version: Version,
    *,
    grouped: bool,
    deterministic: bool = False,
) -> Kernel:
    """The kernel that torch takes for these inputs on a card of this compute capability.

    `grouped` is the argument `enable_gqa`: without it, heads of keys that are fewer than those of queries are
    broadcast, which the composite kernel alone does (Falcon calls torch so). Kernels that are switched off
    (`torch.nn.attention.sdpa_kernel`) are left out, and cuDNN's where all must be `deterministic`.

    The rules are those of aten/src/ATen/native/transformers/cuda/sdp_utils.cpp: cuDNN where it is preferred (9.x and
    10.x, with cuDNN from 9.15.1 on, as wheels bring it), flash, memory-efficient, math.
    """
    given = (query, key, value)
    if any(tensor.dim() != 4 for tensor in given) or not _heads_fit(query, key, value, grouped=grouped):
        return "math"
    # Rows of one element may have any stride in cuDNN and flash, not so in the memory-efficient kernel.
    even = all(tensor.stride(-1) == 1 for tensor in given)
    trains = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)
    enabled = torch.backends.cuda
    may_cudnn = even and not deterministic and enabled.cudnn_sdp_enabled() and _mask_fits(mask, query, key)
    if may_cudnn and _cudnn_can(query, key, value, dropout, capability, version):
        return "cudnn"
    may_flash = even and mask is None and enabled.flash_sdp_enabled()
    if may_flash and _flash_can(query, key, value, dropout, causal, capability, trains=trains):
        return "flash"
    if even and enabled.mem_efficient_sdp_enabled() and _efficient_can(query, key, value, capability, version):
        return "efficient"
    return "math"


def _heads_fit(query: Tensor, key: Tensor, value: Tensor, *, grouped: bool) -> bool:
    """Whether any kernel but the composite one takes these rows and heads (`check_batch_size_and_num_heads_dense`)."""
    if not query.shape[0] == key.shape[0] == value.shape[0] or 0 in (query.shape[2], key.shape[2]):
        return False
    heads = query.shape[1], key.shape[1], value.shape[1]
    return heads[1] == heads[2] and (heads[0] == heads[1] or (grouped and heads[0] % heads[1] == 0))


def _mask_fits(mask: Tensor | None, query: Tensor, key: Tensor) -> bool:
    """Whether cuDNN takes the mask (`check_attn_mask_shape`)."""
    if mask is None:
        return True
    whole = query.shape[0], query.shape[1], query.shape[2], key.shape[2]
    given = tuple(mask.shape)
    fits = all(size in (1, full) for size, full in zip(given, whole[-len(given) :], strict=True))
    return fits and len(given) in (2, 4) and not mask.requires_grad


def _cudnn_can(
    query: Tensor, key: Tensor, value: Tensor, dropout: float, capability: tuple[int, int], version: Version
) -> bool:
    if query.dtype not in HALF or capability[0] not in (9, 10) or capability[1] not in (0, 3):
        return False
    sizes = query.shape[-1], value.shape[-1]
    wide = capability == (9, 0) and version < NEWER  # measured: with heads of 192 and 256
    if max(sizes) > (256 if wide else 128) and sizes != (192, 128):
        return False
    if version >= NEWER and (dropout * 16) % 1:
        return False
    alone = key.shape[2] == 1 or (dropout > 0 and query.shape[2] == 1)
    return not alone and not any(size % 8 for size in sizes)


def _flash_can(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: float,
    causal: bool,
    capability: tuple[int, int],
    *,
    trains: bool,
) -> bool:
    size = query.shape[-1]
    if query.dtype not in HALF or not (8, 0) <= capability <= (12, 1) or size > 256 or size != value.shape[-1]:
        return False
    if causal and query.shape[2] != key.shape[2]:
        return False
    small = (8, 6) <= capability <= (8, 9) or capability >= (12, 0)
    return not (small and trains and (192 < size <= 224 or (size > 224 and dropout > 0)))


def _efficient_can(query: Tensor, key: Tensor, value: Tensor, capability: tuple[int, int], version: Version) -> bool:
    half = query.dtype in HALF
    if query.dtype == torch.bfloat16 and capability < (8, 0):
        return False
    if not half and query.dtype != torch.float32:
        return False
    if key.shape[1] != query.shape[1] and version < NEWER:
        return False
    multiple = 8 if half else 4 if capability >= (8, 0) else 1
    return not any(size % multiple for size in (query.shape[-1], value.shape[-1]))


def attend(
    kernel: Kernel,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    causal: bool,
    scale: float | None,
    *,
    grouped: bool,
) -> Tensor:
    """Attention by a kernel, `[B, H, S, D]` to `[B, H, S, D]`, with all that its CUDA dispatch does around it
    (`scaled_dot_product_attention`, aten/src/ATen/native/transformers/attention.cpp).
    """
    aten: Any = torch.ops.aten
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    if kernel == "flash":
        return _flash(query, key, value, dropout, causal, scale)
    if mask is not None:
        mask = as_bias(mask, query)
    out: Tensor
    if kernel == "cudnn":
        out = aten._scaled_dot_product_cudnn_attention(
            query, key, value, mask, keep, dropout, causal, False, scale=scale
        )[0]
    elif kernel == "efficient":
        if mask is not None:
            mask = aligned(mask).expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
        out = aten._scaled_dot_product_efficient_attention(query, key, value, mask, keep, dropout, causal, scale=scale)[
            0
        ]
    else:
        out = aten._scaled_dot_product_attention_math(
            query, key, value, mask, dropout, causal, scale=scale, enable_gqa=grouped
        )[0]
    return out


def _flash(query: Tensor, key: Tensor, value: Tensor, dropout: float, causal: bool, scale: float | None) -> Tensor:
    """Heads are padded to a multiple of 8, and the result is cut, which is a view."""
    width = query.shape[-1]
    if width % 8:
        pad = 8 - width % 8
        query, key, value = (torch.nn.functional.pad(t, (0, pad)) for t in (query, key, value))
        scale = width**-0.5 if scale is None else scale
    out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, dropout, causal, scale=scale)[0]
    return out[..., :width] if width % 8 else out


def as_bias(mask: Tensor, query: Tensor) -> Tensor:
    """A boolean mask becomes one to add (`convert_boolean_attn_mask`), through two scalars."""
    if mask.dtype != torch.bool:
        return mask
    nothing = torch.empty((), dtype=query.dtype, device=mask.device)
    everything = torch.empty((), dtype=query.dtype, device=mask.device)
    return torch.where(mask, nothing, everything)


def aligned(bias: Tensor) -> Tensor:
    """With rows that begin at multiples of 8 numbers, as the memory-efficient kernel needs (`preprocess_mask`)."""
    if bias.stride(-1) == 1 and not any(stride % 8 for stride in bias.stride()[:-1]):
        return bias
    width = bias.shape[-1]
    return torch.nn.functional.pad(bias, (0, 8 - width % 8))[..., :width]
