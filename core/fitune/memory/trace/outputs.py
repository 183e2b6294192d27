"""Results of operations as their CUDA kernels make them, where they are made otherwise without values."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fitune.memory.trace.fast_meta import USUAL

aten: Any = torch.ops.aten


def cudnn_attention(*args: Any, **named: Any) -> Any:
    """Without a gradient to come, nothing is kept of each row's softmax."""
    results = aten._scaled_dot_product_cudnn_attention(*args, **named)
    return results if args[4] else (results[0], results[1].new_empty(0), *results[2:])


def efficient_attention(*args: Any, **named: Any) -> Any:
    """The seed and offset of dropout are on the host."""
    out, lse, seed, offset = aten._scaled_dot_product_efficient_attention(*args, **named)
    return out, lse, torch.empty_like(seed, device="cpu"), torch.empty_like(offset, device="cpu")


def grouped_mm(first: Tensor, second: Tensor, offs: Tensor | None = None, *rest: Any, **named: Any) -> Tensor:
    """Products of groups of rows: torch makes them of every floating type on a card, and of bfloat16 alone without
    values (`_grouped_mm`). Rows of the result begin at multiples of 16 bytes.
    """
    height, width = first.shape[-2], second.shape[-1]
    groups: tuple[int, ...] = ()
    if first.dim() == second.dim():
        groups = (first.shape[0] if first.dim() == 3 else _length(offs),)
    dtype = named.get("out_dtype") or first.dtype
    multiple = 16 // dtype.itemsize
    padded = -(-width // multiple) * multiple
    strides = (height * padded, padded, 1)[-len(groups) - 2 :]
    return torch.empty_strided((*groups, height, width), strides, dtype=dtype, device=first.device)


def _length(offsets: Tensor | None) -> int:
    assert offsets is not None
    return offsets.shape[0]


def _added_in_place(operation: Any) -> Callable[..., Tensor]:
    """In a backward pass, what adds to zeros that it made does so in place; under a dispatch mode it would not
    (`areAnyTensorSubclassLike`, torch/csrc/autograd/FunctionsManual.cpp).
    """

    def add(*args: Any, **named: Any) -> Tensor:
        if torch._C._current_graph_task_id() == -1:
            return operation(*args, **named)  # type: ignore[no-any-return]
        return args[0]  # type: ignore[no-any-return]

    return add


def add(*args: Any, **named: Any) -> Any:
    """Where gradients of one tensor meet, the engine adds to the first of them if it is the last to hold that; under a
    dispatch mode it does not (`can_accumulate_inplace`, torch/csrc/autograd/input_buffer.cpp).
    """
    first = args[0]
    if torch._C._current_graph_task_id() != -1 and not torch.is_grad_enabled() and not named and _of_engine():
        dense = aten.is_non_overlapping_and_dense(first)
        if dense and first.shape == args[1].shape and _holders(first) == _fewest():
            return first
    return USUAL["aten.add.Tensor"](*args, **named)


def _of_engine() -> bool:
    """Whether the tracer was called by the autograd engine itself, not by a function in Python."""
    caller = sys._getframe(3)  # of what called the tracer
    if caller.f_code.co_name == "_fn":  # torch's own wrapper
        caller = caller.f_back or caller
    return caller.f_code.co_name == "_engine_run_backward"


def _holders(tensor: Tensor) -> tuple[int, int]:
    """References to a tensor and to its storage."""
    storage = tensor.untyped_storage()
    return tensor._use_count(), torch._C._storage_Use_Count(storage._cdata)  # type: ignore[attr-defined]


@functools.cache
def _fewest() -> tuple[int, int]:
    """Of a tensor that the engine alone holds, as a dispatch mode sees it; it depends on the release of torch."""
    seen: list[tuple[int, int]] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is aten.add.Tensor:
                seen.append(_holders(args[0]))
            return func(*args, **(kwargs or {}))

    with torch.enable_grad(), Watch():  # type: ignore[no-untyped-call]
        leaf = torch.empty(2, device="meta", requires_grad=True)
        both = torch.stack((leaf.sin(), leaf.cos()))
        torch.autograd.grad(both, leaf, torch.empty_like(both))
    return seen[-1]


def prepare() -> None:
    """Learn what `add` needs to know, which cannot be done while a backward pass runs."""
    _fewest()


@functools.cache
def name_of(operation: Any) -> str:
    """Of an operation, e.g. "aten.mm.default"; torch puts it together each time."""
    return str(operation)


AS_KERNEL: dict[str, Callable[..., Any]] = {
    **USUAL,
    "aten._scaled_dot_product_efficient_attention.default": efficient_attention,
    "aten._scaled_dot_product_cudnn_attention.default": cudnn_attention,
    "aten._grouped_mm.default": grouped_mm,
    "aten.index_put.default": _added_in_place(aten.index_put),
    "aten.index_add.default": _added_in_place(aten.index_add),
    "aten.add.Tensor": add,
    "aten.scatter_add.default": _added_in_place(aten.scatter_add),
}
"""By operation; called with its arguments."""
