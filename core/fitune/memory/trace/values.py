"""Questions to values that have an answer without values, so that a trace can go on.

A mixture of experts that takes its experts one after the other asks which of them have tokens, and which tokens these
are (DBRX, LongCat-Flash, models' own code on the hub). A token goes to different experts, as `topk` chose them, so one
expert has each token at most once: the most that a step can take is what it takes if all tokens go to the same experts
and every other expert has one. What `topk` gave, and what is made of it, is marked on its storage, which views share.

What a model asserts is taken to hold: a run in which it does not would end there.
"""

from __future__ import annotations

import ast
import functools
import linecache
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor

aten: Any = torch.ops.aten

MARK = "_fitune_routing"
"""The attribute of a storage that says what it holds."""

What = Literal["choices", "mask", "counts", "experts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """Which experts tokens go to, as far as that is known without values."""

    what: What
    """What the storage holds: the choices of each token; a 1 for each of them; how many tokens each expert has, or
    whether any; the experts that have some."""
    tokens: int
    choices: int
    """Experts of each token, which differ."""
    experts: int
    """Experts to choose of."""
    classes: int = 0
    """Columns of the mask, of which the first are for the experts."""


def routing_of(tensor: Tensor) -> Routing | None:
    """What a tensor says of where tokens go; None for one that is about something else."""
    found: Routing | None = getattr(tensor.untyped_storage(), MARK, None)
    return found


def _marked(tensor: Tensor, routing: Routing) -> Tensor:
    setattr(tensor.untyped_storage(), MARK, routing)
    return tensor


def topk(*args: Any, **named: Any) -> Any:
    """The indices are choices, along the last dimension."""
    values, indices = aten.topk.default(*args, **named)
    dim = args[2] if len(args) > 2 else named.get("dim", -1)
    if indices.dim() and dim in (-1, indices.dim() - 1) and indices.shape[-1]:
        tokens, choices = indices.numel() // indices.shape[-1], indices.shape[-1]
        _marked(indices, Routing(what="choices", tokens=tokens, choices=choices, experts=args[0].shape[-1]))
    return values, indices


def mark_one_hot(mask: Tensor, choices: Tensor) -> Tensor:
    """The mask `[..., choices, classes]` of indices `[..., choices]`, marked if these are choices of experts."""
    routing = routing_of(choices)
    if routing is None or routing.what != "choices" or choices.numel() != routing.tokens * routing.choices:
        return mask
    return _marked(mask, replace(routing, what="mask", classes=mask.shape[-1]))


def sum_of(*args: Any, **named: Any) -> Any:
    """A mask, summed over all but its classes, counts each expert's tokens."""
    counts = aten.sum.dim_IntList(*args, **named)
    routing = routing_of(args[0])
    if routing is not None and routing.what == "mask" and counts.shape == (routing.classes,):
        _marked(counts, replace(routing, what="counts"))
    return counts


def greater(*args: Any, **named: Any) -> Any:
    """Which experts have tokens at all."""
    found = aten.gt.Scalar(*args, **named)
    routing = routing_of(args[0])
    if routing is not None and routing.what == "counts" and args[1] == 0:
        _marked(found, routing)
    return found


def nonzero(tensor: Tensor) -> Tensor:
    """Of counts: every expert. Of one expert's part of a mask: all tokens for as many experts as a token has, and one
    for each of the others, since the allocator rounds up for them. Rows are those of a transposed matrix, as torch
    makes it.
    """
    routing = routing_of(tensor)
    number = None if routing is None else _most(tensor, routing)
    if routing is None or number is None:
        return aten.nonzero.default(tensor)  # type: ignore[no-any-return]
    found = torch.empty((tensor.dim(), number), dtype=torch.int64, device=tensor.device).t()
    return _marked(found, replace(routing, what="experts")) if routing.what == "counts" else found


def _most(tensor: Tensor, routing: Routing) -> int | None:
    """How many there can be at most; None where nothing is known."""
    if routing.what == "counts" and tensor.numel() == routing.classes:
        return min(routing.experts, routing.tokens * routing.choices)
    pairs = routing.tokens * routing.choices
    if routing.what == "mask" and tensor.numel() == pairs * routing.classes:
        return pairs
    of_one = all(stride % routing.classes == 0 for stride in tensor.stride()) if routing.classes else False
    if routing.what == "mask" and tensor.numel() == pairs and of_one:
        expert = tensor.storage_offset() % routing.classes
        return routing.tokens if expert < routing.choices else int(expert < routing.experts)
    return None


def split_with_sizes(tensor: Tensor, sizes: Sequence[int], dim: int = 0) -> Any:
    """Sizes that were asked of values, which are none here: one part takes all, which is the most that it can be."""
    total = tensor.shape[dim]
    if total and not any(sizes):
        sizes = (total, *[0] * (len(sizes) - 1))
    return aten.split_with_sizes(tensor, sizes, dim)


def local_scalar_dense(tensor: Tensor) -> Any:
    """The number of an expert that has tokens, or what makes an assertion hold."""
    routing = routing_of(tensor)
    if routing is not None and routing.what == "experts":
        return tensor.storage_offset()
    if _asserts(sys._getframe(1)):
        return True if tensor.dtype == torch.bool else 0
    return aten._local_scalar_dense.default(tensor)


def _asserts(frame: FrameType | None) -> bool:
    """Whether the code that asked, the first outside of torch and of the tracer, stands in an `assert`."""
    while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("torch", "fitune"):
        frame = frame.f_back
    return frame is not None and frame.f_lineno in _lines_of_asserts(frame.f_code.co_filename)


@functools.cache
def _lines_of_asserts(file: str) -> frozenset[int]:
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except (SyntaxError, ValueError):  # it is no file with code of Python
        return frozenset()
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    return frozenset(line for node in found for line in range(node.lineno, (node.test.end_lineno or 0) + 1))


ANSWERED: dict[str, Callable[..., Any]] = {
    "aten.topk.default": topk,
    "aten.sum.dim_IntList": sum_of,
    "aten.gt.Scalar": greater,
    "aten.nonzero.default": nonzero,
    "aten.split_with_sizes.default": split_with_sizes,
    "aten._local_scalar_dense.default": local_scalar_dense,
}
"""By operation; called with its arguments, where these have no values."""

THE_MOST = (
    "how many tokens each expert gets is not known before: what is forecast is the most that there can be, and a run "
    "takes that or less"
)
"""What a forecast tells of a bound."""


def is_bound(name: str, args: Sequence[Any]) -> bool:
    """Whether an operation has answered without values by the most that there can be."""
    if not (isinstance(args[0], Tensor) and args[0].is_meta):
        return False
    return name == "aten.nonzero.default" or (name == "aten.split_with_sizes.default" and not any(args[1]))


def draws(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operation draws random numbers: attention may, and does not where it drops nothing."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    for at, argument in enumerate(func._schema.arguments):
        if argument.name == "dropout_p":
            return bool(args[at] if at < len(args) else kwargs.get("dropout_p", argument.default_value))
    return True
