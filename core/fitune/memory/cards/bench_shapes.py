"""Sizes that `ft bench` measures: those of steps of models from half a billion to tens of billions of parameters."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fitune.memory.cards.rates import Passing

HIDDEN, INNER, HEAD = 4096, 11008, 102400
"""Widths: of a model of 7 billion parameters, of its MLP, of a large vocabulary."""

SMALL = 1024
"""The hidden size of a model of half a billion."""

ROWS = (128, 512, 1024, 2048, 4096, 8192)

RANKS = (4, 12, 16, 64)
"""In 16 bits, rows of 4 and 12 begin at no multiple of 16 bytes."""

TOKENS = (512, 1024, 2048, 4096, 8192, 16384)

BYTES = (2**16, 2**20, 2**23, 2**25, 2**27, 2**28)
"""Of one operand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Products of [rows, inner] with [inner, columns]."""

    batch: int = 1
    rows: int
    columns: int
    inner: int
    added: bool = False
    """To what is there."""
    across: bool = False
    """Whether both operands are read across their rows, as for the gradient of a weight."""

    def smaller(self, divisor: int) -> Shape:
        """With large sizes divided."""
        small = {name: max(16, getattr(self, name) // divisor) for name in ("rows", "columns", "inner")}
        kept = {name: size for name, size in small.items() if getattr(self, name) > 64}
        return replace(self, batch=min(self.batch, 2), **kept)


def products_of(*, float8: bool) -> dict[str, tuple[Shape, ...]]:
    """By type."""
    square = Shape(rows=8192, columns=8192, inner=8192)
    some = tuple(Shape(rows=rows, columns=HIDDEN, inner=HIDDEN) for rows in (512, 2048, 4096))
    wide = tuple(Shape(rows=rows, columns=INNER, inner=HIDDEN) for rows in (512, 2048, 4096))
    deep = tuple(Shape(rows=rows, columns=HIDDEN, inner=INNER) for rows in (512, 2048, 4096))
    return {
        "bfloat16": (square, *_large(), *_skinny(), *_batched()),
        "float16": (square, *some),
        "float32": (*some, *(shape for shape in _skinny() if 16 in (shape.columns, shape.inner))),
        **({"float8_e4m3fn": (square, *some, *wide, *deep)} if float8 else {}),
    }


def attention_sizes(kernel: str) -> tuple[tuple[int, int, int], ...]:
    """(Heads, tokens, size of a head)."""
    usual = tuple((32, tokens, size) for size in (64, 128) for tokens in TOKENS)
    wide = tuple((8, tokens, 256) for tokens in (1024, 4096))
    return tuple(one for one in usual if one[1] in (1024, 4096)) if kernel == "efficient" else (*usual, *wide)


def passes_of() -> dict[Passing, tuple[int, ...]]:
    """Bytes of an operand, by kind."""
    return {"copy": BYTES, "pointwise": BYTES, "strided": BYTES, "reduction": BYTES}


def _large() -> tuple[Shape, ...]:
    widths = ((HIDDEN, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER))
    found = [Shape(rows=rows, columns=columns, inner=inner) for columns, inner in widths for rows in ROWS]
    found += [Shape(rows=rows, columns=SMALL, inner=HIDDEN) for rows in (1024, 4096)]  # keys of grouped heads
    found += [Shape(rows=rows, columns=SMALL, inner=SMALL) for rows in (512, 2048, 8192)]
    for rows in (128, 512, 2048):
        found += [Shape(rows=rows, columns=HEAD, inner=HIDDEN), Shape(rows=rows, columns=HIDDEN, inner=HEAD)]
    found += [Shape(rows=HIDDEN, columns=HIDDEN, inner=rows, across=True) for rows in (1024, 4096)]  # of full weights
    return tuple(found)


def _skinny() -> tuple[Shape, ...]:
    """Of a low-rank adapter's factors: in a forward pass, and their gradients."""
    found = []
    for rank in RANKS:
        for width in (HIDDEN, INNER):
            for rows in (1024, 4096):
                found.append(Shape(rows=rows, columns=rank, inner=width))
                found.append(Shape(rows=rows, columns=width, inner=rank, added=True))
                found.append(Shape(rows=rank, columns=width, inner=rows, across=True))
                found.append(Shape(rows=width, columns=rank, inner=rows, across=True))
    return tuple(found)


def _batched() -> tuple[Shape, ...]:
    """Of attention without a kernel of its own, and of experts."""
    return (
        Shape(batch=32, rows=1024, columns=1024, inner=128),
        Shape(batch=32, rows=1024, columns=128, inner=1024),
        Shape(batch=8, rows=512, columns=HIDDEN, inner=HIDDEN),
        Shape(batch=64, rows=64, columns=2048, inner=2048),
    )
