"""Results of the operations that a step is made of for the most part, as torch makes them, in a tenth of the time.

Without values torch goes through Python for these, with every case that there is; a trace nearly always meets one of
them: tensors of one type and shape, and products of two matrices. Everything else is left to torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten: Any = torch.ops.aten

Made = Callable[..., Any]


def _like(tensor: Tensor) -> Tensor:
    """`torch.empty_like` itself goes through Python."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _usual(*tensors: Any) -> bool:
    """Whether all are without values and of one floating-point type, and the first has no holes."""
    first = tensors[0]
    alike = all(isinstance(t, Tensor) and t.is_meta and t.dtype is first.dtype for t in tensors)
    dense = first.is_contiguous() or aten.is_non_overlapping_and_dense(first)
    return alike and first.dtype.is_floating_point and dense


def _elementwise(operation: Any) -> Made:
    """Of one tensor, or of one and a number, or of one and another that has its shape or is spread to it."""

    def make(*args: Any, **named: Any) -> Any:
        first, second = args[0], args[-1]
        if not named and len(args) < 3 and _usual(first):
            if len(args) == 1 or type(second) in (int, float):
                return _like(first)
            if _usual(first, second) and _spreads(second.shape, first.shape):
                return _like(first)  # the order of its dimensions decides (TensorIterator::reorder_dimensions)
        return operation(*args, **named)

    return make


def _spreads(shape: torch.Size, over: torch.Size) -> bool:
    if shape == over:
        return True
    least = len(over) - len(shape)
    return least >= 0 and all(size in (1, over[least + at]) for at, size in enumerate(shape))


def _matrices(left: Tensor, right: Tensor) -> bool:
    alike = left.is_meta and right.is_meta and left.dtype is right.dtype
    return alike and left.dim() == right.dim() == 2 and left.shape[1] == right.shape[0]


def mm(*args: Any, **named: Any) -> Any:
    """A product of two matrices."""
    if named or len(args) != 2 or not _matrices(*args):
        return aten.mm.default(*args, **named)
    return torch.empty((args[0].shape[0], args[1].shape[1]), dtype=args[0].dtype, device="meta")


def addmm_(*args: Any, **named: Any) -> Any:
    """A product that is added in place."""
    fits = len(args) == 3 and _matrices(*args[1:]) and args[0].dtype is args[1].dtype
    if fits and args[0].shape == (args[1].shape[0], args[2].shape[1]):
        return args[0]
    return aten.addmm_.default(*args, **named)


def addmm(*args: Any, **named: Any) -> Any:
    """A product with another matrix beside it, both times a number."""
    numbers = all(key in ("alpha", "beta") and type(value) in (int, float) for key, value in named.items())
    if len(args) == 3 and numbers and _usual(*args) and _matrices(*args[1:]):
        shape = (args[1].shape[0], args[2].shape[1])
        if args[0].shape == shape:
            return torch.empty(shape, dtype=args[0].dtype, device="meta")
    return aten.addmm.default(*args, **named)


def vector_norm(*args: Any, **named: Any) -> Any:
    """The norm of all of a tensor."""
    if named or len(args) != 1 or not _usual(*args):
        return aten.linalg_vector_norm.default(*args, **named)
    return torch.empty((), dtype=args[0].dtype, device="meta")


def mean(*args: Any, **named: Any) -> Any:
    """The mean over one dimension of a tensor that is stored row by row."""
    if named or len(args) not in (2, 3) or len(args[1] or ()) != 1 or not _usual(args[0]):
        return aten.mean.dim(*args, **named)
    first, (dim,), *keep = args
    if not first.is_contiguous() or not -first.dim() <= dim < first.dim():
        return aten.mean.dim(*args, **named)
    shape = list(first.shape)
    shape[dim : dim + 1 or None] = [1] if keep and keep[0] else []
    return torch.empty(shape, dtype=first.dtype, device="meta")


def clamp(*args: Any, **named: Any) -> Any:
    """A tensor between two numbers, or on one side of one."""
    return _like(args[0]) if _between(*args, **named) else aten.clamp.default(*args, **named)


def clamp_(*args: Any, **named: Any) -> Any:
    """The same in place."""
    return args[0] if _between(*args, **named) else aten.clamp_.default(*args, **named)


def _between(*args: Any, **named: Any) -> bool:
    limits = [limit for limit in args[1:] if limit is not None]
    return not named and bool(limits) and _usual(args[0]) and all(type(limit) in (int, float) for limit in limits)


def rms_norm(*args: Any, **named: Any) -> Any:
    """The norm of the last dimension, and its scale of each row in float32."""
    inputs, shape, weight = args[:3]
    if named or len(shape) != 1 or weight is None or not _usual(inputs, weight) or not inputs.is_contiguous():
        return aten._fused_rms_norm.default(*args, **named)
    return _like(inputs), torch.empty((*inputs.shape[:-1], 1), dtype=torch.float32, device="meta")


def rms_norm_backward(*args: Any, **named: Any) -> Any:
    """Its gradients, of what is asked for."""
    gradient, inputs, shape, _, weight, asked = args
    if len(shape) != 1 or weight is None or not _usual(inputs, gradient, weight) or not inputs.is_contiguous():
        return aten._fused_rms_norm_backward.default(*args, **named)
    return _like(inputs) if asked[0] else None, _like(weight) if asked[1] else None


def flash_attention(*args: Any, **named: Any) -> Any:
    """Attention by FlashAttention, `[batch, heads, tokens, size]`, and what its gradient needs of it."""
    scaled = set(named) <= {"scale"} and torch.version.hip is None
    if not scaled or len(args) not in (3, 4, 5) or not _usual(*args[:3]) or args[0].dim() != 4:
        return aten._scaled_dot_product_flash_attention.default(*args, **named)
    query, tokens, keys = args[0], args[0].shape[2], args[1].shape[2]
    lse = torch.empty(query.shape[:3], dtype=torch.float32, device="meta")
    seed, offset = (torch.empty(shape, dtype=torch.uint64, device="meta") for shape in ((2,), ()))
    return _like(query), lse, None, None, tokens, keys, seed, offset, torch.empty(0, dtype=query.dtype, device="meta")


def flash_attention_backward(*args: Any, **named: Any) -> Any:
    """Its gradients."""
    if len(args) < 4 or not all(_usual(one) for one in args[1:4]):
        return aten._scaled_dot_product_flash_attention_backward.default(*args, **named)
    return tuple(map(_like, args[1:4]))


ELEMENTWISE = (
    *("mul.Tensor", "add.Tensor", "sub.Tensor", "div.Tensor", "neg.default", "silu.default", "sigmoid.default"),
    *("rsqrt.default", "pow.Tensor_Scalar"),
)

USUAL: dict[str, Made] = {
    **{f"aten.{name}": _elementwise(getattr(getattr(aten, name[: name.index(".")]), name.split(".")[1]))
       for name in ELEMENTWISE},
    "aten.mm.default": mm,
    "aten.addmm_.default": addmm_,
    "aten.addmm.default": addmm,
    "aten._scaled_dot_product_flash_attention.default": flash_attention,
    "aten._scaled_dot_product_flash_attention_backward.default": flash_attention_backward,
    "aten.linalg_vector_norm.default": vector_norm,
    "aten.mean.dim": mean,
    "aten.clamp.default": clamp,
    "aten.clamp_.default": clamp_,
    "aten._fused_rms_norm.default": rms_norm,
    "aten._fused_rms_norm_backward.default": rms_norm_backward,
}  # fmt: skip
"""By operation; called with its arguments."""
