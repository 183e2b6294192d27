"""What kernels' launches depend on: a card's compute capability, multiprocessors and threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

MULTIPROCESSORS = {
    (7, 0): 80,  # V100
    (7, 5): 40,  # T4
    (8, 0): 108,  # A100
    (8, 6): 80,  # A10G
    (8, 9): 58,  # L4
    (9, 0): 132,  # H100 SXM
    (10, 0): 148,  # B200
    (12, 0): 170,  # RTX 5090
}
"""Of a usual card of each compute capability; others of it have more or fewer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A card, as a kernel sees it."""

    capability: tuple[int, int] = (9, 0)
    multiprocessors: int = 132
    threads: int = 2048
    """Threads that a multiprocessor holds."""
    deterministic: bool = False
    """Whether its kernels are to be deterministic."""
    flash: str = "FA2"
    """The FlashAttention that computes torch's (`fitune.compose.flash_attention`)."""

    @classmethod
    def of(cls, capability: tuple[int, int], *, deterministic: bool = False) -> Gpu:
        """A usual card of this compute capability; the numbers of one that is not known are those of an A100."""
        smaller = 1024 if capability == (7, 5) else 1536
        full = capability[1] == 0 and capability[0] != 12
        number = MULTIPROCESSORS.get(capability, 108)
        return cls(
            capability=capability,
            multiprocessors=number,
            threads=2048 if full else smaller,
            deterministic=deterministic,
        )


Scratch = Callable[[Sequence[Any], Any], Iterable[int]]
"""Bytes that a kernel takes beside its results: `(its arguments, its results) -> sizes`, in order.

Arguments are those by position. All sizes are alive at once, unless a negative number -n stands among them: there the
n-th block, counted from 1, is given back.
"""
