"""Inputs of the fast path's operations: odd and even sizes, one row and none, all ranks, any strides.

The same for the reference on a CPU, for Triton's interpreter and for a card.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from support import kernel_formulas

RANKS = (0, 1, 4, 12, 16)
EPS = 1e-6
Maker = Callable[["Numbers"], tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Numbers:
    """Makes tensors of one type, on one device, from one seed."""

    dtype: torch.dtype
    device: str
    generator: torch.Generator

    def matrix(self, rows: int, columns: int, scale: float = 1.0) -> Tensor:
        """A view of wider rows, which is what products of stacked linears give."""
        wide = torch.randn(rows, columns + 8, generator=self.generator, dtype=torch.float64) * scale
        return wide.to(self.device, self.dtype)[:, :columns]

    def vector(self, columns: int) -> Tensor:
        """A contiguous one."""
        return self.matrix(1, columns)[0].clone()

    def low(self, rows: int, columns: int, ranks: int) -> tuple[Tensor | None, Tensor | None]:
        """Both halves of a low-rank part, or none."""
        if ranks == 0:
            return None, None
        return self.matrix(rows, ranks), self.matrix(ranks, columns, 0.3)

    def heads(self, rows: int, heads: int, width: int) -> Tensor:
        """`[rows, heads, width]` as attention gives gradients: head by head."""
        return self.matrix(heads * rows, width).view(heads, rows, width).transpose(0, 1)

    def table(self, rows: int, columns: int, wide: bool) -> tuple[Tensor, Tensor]:
        """Cosines and sines, `wide` in float32 (OLMo 2). Their halves differ, so that a mistaken one is seen."""
        angles = torch.rand(rows, columns, generator=self.generator, dtype=torch.float64) * 6
        dtype = torch.promote_types(self.dtype, torch.float32) if wide else self.dtype
        return angles.cos().to(self.device, dtype), angles.sin().to(self.device, dtype)


@dataclass(frozen=True, slots=True)
class Case:
    """One call of an operation."""

    operation: str
    label: str
    make: Maker

    def __str__(self) -> str:
        return f"{self.operation} {self.label}"

    def inputs(self, dtype: torch.dtype, device: str = "cpu") -> tuple[Any, ...]:
        """The same numbers each time, in a type and on a device."""
        generator = torch.Generator().manual_seed(zlib.crc32(str(self).encode()))
        return self.make(Numbers(dtype, device, generator))

    def truth(self, inputs: tuple[Any, ...]) -> tuple[Tensor, ...]:
        """What these very inputs give in float64."""
        return called(getattr(kernel_formulas, self.operation), converted(inputs, torch.float64))

    def plainly(self, inputs: tuple[Any, ...]) -> tuple[Tensor, ...]:
        """What a plain run makes of them, in their own type."""
        return called(getattr(kernel_formulas, self.operation), copied(inputs))


def converted(inputs: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    """Copies, floating numbers in another type."""
    return tuple(
        one.to(dtype if one.is_floating_point() else one.dtype, copy=True) if isinstance(one, Tensor) else one
        for one in inputs
    )


def copied(inputs: tuple[Any, ...], device: str | None = None) -> tuple[Any, ...]:
    """Copies of the same strides, on their own device or another."""

    def one(x: Tensor) -> Tensor:
        copy = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device or x.device)
        return copy.copy_(x)

    return tuple(one(x) if isinstance(x, Tensor) else x for x in inputs)


def called(function: Callable[..., Any], inputs: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """All that a call gives; what it changes in place is a result too."""
    given = function(*inputs)
    results = () if given is None else given if isinstance(given, tuple) else (given,)
    return (*results, inputs[0]) if function.__name__.endswith("_") else results


def relative(found: Tensor, truth: Tensor) -> float:
    """Norm of the error over the norm of the truth, in float64; the error's own where the truth is all zeros."""
    size = float(truth.double().norm())
    return float((found.double() - truth.double()).norm()) / (size or 1.0)


def norm(rows: int, width: int, unit: bool, first: bool, n: Numbers) -> tuple[Any, ...]:
    return n.matrix(rows, width), n.vector(width), EPS, unit, first


def norm_backward(
    rows: int, width: int, ranks: int, how: tuple[bool, bool], again: bool, n: Numbers
) -> tuple[Any, ...]:
    dres = n.matrix(rows, width) if again else None
    inputs = (n.matrix(rows, width), *n.low(rows, width, ranks), n.matrix(rows, width), n.vector(width), EPS)
    return (*inputs, *how, dres, again)


def rope(
    rows: int, heads: tuple[int, int], width: int, turned: int, ranks: int, normed: bool, n: Numbers
) -> tuple[Any, ...]:
    q, k = (n.matrix(rows, count * width) for count in heads)
    lows = [one for count in heads for one in n.low(rows, count * width, ranks)]
    weights = [n.vector(width) if normed else None for _ in heads]
    tables = n.table(max(1, rows // 2), turned, wide=width % 3 == 0)
    return (q, k, *tables, *lows, *weights, EPS, normed and ranks > 1, ranks < 4, width)


def rope_backward(
    rows: int, heads: tuple[int, int], width: int, turned: int, ranks: int, normed: bool, n: Numbers
) -> tuple[Any, ...]:
    q, k, cos, sin, *rest = rope(rows, heads, width, turned, ranks, normed, n)
    grads = (n.heads(rows, heads[0], width), n.heads(rows, heads[1], width), n.heads(rows, heads[1], width + 4))
    return (*grads, cos, sin, *((q, k) if normed else (None, None)), *rest)


def gated(rows: int, width: int, ranks: tuple[int, int], act: str, n: Numbers) -> tuple[Any, ...]:
    both = n.matrix(rows, 2 * width)
    lows = [one for count in ranks for one in n.low(rows, width, count)]
    return (both[:, :width], both[:, width:], *lows, act)


def gated_backward(
    rows: int, width: int, ranks: tuple[int, int, int], act: str, again: bool, n: Numbers
) -> tuple[Any, ...]:
    return (n.matrix(rows, width), *n.low(rows, width, ranks[2]), *gated(rows, width, ranks[:2], act, n), again)


def cross_entropy(rows: int, width: int, cap: float, scale: float, n: Numbers) -> tuple[Any, ...]:
    labels = torch.randint(0, width, (rows,), generator=n.generator)
    labels[rows // 2 :: 3] = -100
    return n.matrix(rows, width, scale), labels.to(n.device), cap


def onto_residual(rows: int, width: int, ranks: int, multiplier: float, n: Numbers) -> tuple[Any, ...]:
    return (n.matrix(rows, width), n.matrix(rows, width), *n.low(rows, width, ranks), multiplier)


def skinny(rows: int, depth: int, columns: int, n: Numbers) -> tuple[Any, ...]:
    return n.matrix(rows, depth), n.matrix(columns, depth), 2.0


def skinny_(rows: int, depth: int, columns: int, n: Numbers) -> tuple[Any, ...]:
    return (n.matrix(rows, columns), *skinny(rows, depth, columns, n))


def _cases() -> Iterator[Case]:
    sizes = ((7, 33), (1, 48), (0, 16), (5, 1100))
    mixes: tuple[tuple[int, int, int], ...] = ((0, 0, 0), (4, 0, 12), (1, 16, 4))
    for rows, width in sizes:
        size = f"{rows}x{width}"
        for unit, first in ((False, True), (True, False), (False, False)):
            yield Case("norm", f"{size} unit={unit} first={first}", partial(norm, rows, width, unit, first))
        for index, ranks in enumerate(RANKS):
            how = (index % 2 == 1, index % 2 == 0)
            made = partial(norm_backward, rows, width, ranks, how, ranks != 1)
            yield Case("norm_backward", f"{size} r={ranks}", made)
            yield Case(
                "onto_residual_", f"{size} r={ranks}", partial(onto_residual, rows, width, ranks, 1 + 0.25 * index)
            )
        for act in ("silu", "gelu_tanh", "gelu"):
            for of in mixes:
                made = partial(gated, rows, width, of[:2], act)
                yield Case("gated", f"{size} {act} r={of[:2]}", made)
                made = partial(gated_backward, rows, width, of, act, of[0] != 1)
                yield Case("gated_backward", f"{size} {act} r={of}", made)
        for cap, scale in ((0.0, 1.0), (0.0, 30.0), (30.0, 20.0)):
            made = partial(cross_entropy, rows, width, cap, scale)
            yield Case("cross_entropy_", f"{size} cap={cap} scale={scale}", made)
        for columns in (16, 48):
            yield Case("skinny", f"{size} to {columns}", partial(skinny, rows, width, columns))
            yield Case("skinny_", f"{size} to {columns}", partial(skinny_, rows, width, columns))
    yield Case("cross_entropy_", "several blocks of columns", partial(cross_entropy, 3, 20011, 0.0, 8.0))
    yield Case("cross_entropy_", "several blocks of columns, capped", partial(cross_entropy, 3, 20011, 30.0, 20.0))


def _of_heads() -> Iterator[Case]:
    shapes = (((4, 2), 16, 16), ((6, 1), 20, 12), ((3, 3), 24, 24), ((8, 4), 10, 4))
    for rows in (7, 1, 0):
        for heads, width, turned in shapes:
            for index, ranks in enumerate(RANKS):
                normed = (index + width // 2) % 2 == 0
                label = f"{rows} heads={heads} width={width}/{turned} r={ranks} normed={normed}"
                yield Case("rope", label, partial(rope, rows, heads, width, turned, ranks, normed))
                yield Case("rope_backward", label, partial(rope_backward, rows, heads, width, turned, ranks, normed))


CASES = (*_cases(), *_of_heads())
"""Small ones, for everywhere."""

LARGE = (
    Case("norm", "llama", partial(norm, 1000, 4096, False, True)),
    Case("norm", "gemma", partial(norm, 1000, 2304, True, False)),
    Case("norm_backward", "llama r=12", partial(norm_backward, 999, 4096, 12, (False, True), True)),
    Case("norm_backward", "gemma r=0", partial(norm_backward, 999, 2304, 0, (True, False), True)),
    Case("norm_backward", "wide r=16", partial(norm_backward, 257, 16384, 16, (False, True), True)),
    Case("rope", "llama 128 r=4", partial(rope, 999, (32, 8), 128, 128, 4, False)),
    Case("rope", "gemma 256 normed", partial(rope, 999, (8, 4), 256, 256, 4, True)),
    Case("rope", "phi 96 partial", partial(rope, 999, (32, 32), 96, 72, 4, False)),
    Case("rope", "80 normed", partial(rope, 999, (9, 3), 80, 32, 12, True)),
    Case("rope_backward", "llama 128", partial(rope_backward, 999, (32, 8), 128, 128, 4, False)),
    Case("rope_backward", "gemma 256 normed", partial(rope_backward, 999, (8, 4), 256, 256, 4, True)),
    Case("rope_backward", "80 normed", partial(rope_backward, 999, (9, 3), 80, 32, 12, True)),
    *(Case("gated", f"{act} r=4", partial(gated, 999, 11008, (4, 4), act)) for act in ("silu", "gelu_tanh", "gelu")),
    *(
        Case("gated_backward", f"{act} r=4", partial(gated_backward, 999, 11008, (4, 4, 4), act, True))
        for act in ("silu", "gelu_tanh", "gelu")
    ),
    Case("cross_entropy_", "102400", partial(cross_entropy, 257, 102400, 0.0, 3.0)),
    Case("cross_entropy_", "262144 capped", partial(cross_entropy, 129, 262144, 30.0, 20.0)),
    Case("skinny", "4096 to 48", partial(skinny, 999, 4096, 48)),
    Case("skinny_", "11008 to 16", partial(skinny_, 999, 11008, 16)),
    Case("onto_residual_", "r=16", partial(onto_residual, 999, 4096, 16, 0.5)),
)
"""Sizes of real models, for a card: of so many numbers no error is luck."""
