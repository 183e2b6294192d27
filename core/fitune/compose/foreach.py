"""Lists of tensors that torch works on in few launches: it does so where the tensors of all lists are alike in types,
devices and strides, and otherwise, for one of them that is not, tensor by tensor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]
"""A tensor that is changed, and one of its shape that it is changed by."""


def alike(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """The pairs in lists, each to be worked on at once: a list whose pairs are alike, and one for each other pair."""
    found: dict[object, list[Pair]] = {}
    for number, (to, by) in enumerate(pairs):
        kind = (to.dtype, to.device, by.dtype, by.device)
        found.setdefault(kind if to.stride() == by.stride() else number, []).append((to, by))
    return list(found.values())


def copy_all(pairs: Sequence[Pair]) -> None:
    """Copy the second of each pair into the first."""
    for some in alike(pairs):
        torch._foreach_copy_([to for to, _ in some], [by for _, by in some])


def add_all(pairs: Sequence[Pair]) -> None:
    """Add the second of each pair to the first."""
    for some in alike(pairs):
        torch._foreach_add_([to for to, _ in some], [by for _, by in some])


def laid_out_as(like: Tensor, piece: Tensor) -> Tensor:
    """The elements of `piece`, a vector, in the shape of `like`, and row by row or column by column as there."""
    if like.dim() == 2 and like.t().is_contiguous():
        return piece.view(like.shape[1], like.shape[0]).t()
    return piece.view_as(like)
