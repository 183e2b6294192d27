"""Which rows of the sources are taken: a function of seed, position and content alone.

Each row has a rank, a number of 64 bits that seed and content give. Of a source's rows those of the lowest ranks are
held out, exactly as many as its share; a run of before 0.2 held out each row whose rank was low enough by itself.
"""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")

Part = Literal["all", "train", "held out"]
"""Which rows of the sources: all of them, or one side of the held-out split."""

Rule = Literal["exact", "by_row"]
"""How a row's side is told (`[eval] split`)."""


def weighted(read: Callable[[], Iterator[T]], weight: float, seed: int) -> Iterator[T]:
    """A stream `weight` times over: whole passes, and of the rest a random part that depends on seed and position."""
    passes, rest = int(weight), weight - int(weight)
    for _ in range(passes):
        yield from read()
    if rest:
        for position, item in enumerate(read()):
            if _rank(f"{seed}:{position}".encode()) / 2**64 < rest:
                yield item


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How many rows of a source are held out."""

    held_out: int
    rows: int
    """Of the source, as often as its weight takes them."""
    asked: int
    """How many its share is; equal rows stay on one side, so that another number may be held out."""
    source: str = ""


class Split:
    """Lets the rows of one side through."""

    def __init__(self, wanted: Callable[[Any], bool] | None, shares: Sequence[Share] = ()) -> None:
        """`wanted` tells of a row whether it is on that side; None where all are wanted."""
        self._wanted = wanted
        self.shares = shares

    def __call__(self, stream: Iterator[T]) -> Iterator[T]:
        """The rows of a source that are wanted."""
        return stream if self._wanted is None else filter(self._wanted, stream)


def split_of(part: Part, rule: Rule, sources: Iterable[Iterator[Any]], fraction: float, seed: int) -> Split:
    """How rows are parted by `[eval] fraction` and `split`. The rows of `sources` are read where all of them must be
    known, which takes 8 bytes a row.
    """
    if part == "all":
        return Split(None)
    held_out = part == "held out"
    if rule == "by_row":
        return Split(lambda row: (_rank(_content(row, seed)) / 2**64 < fraction) == held_out)
    held, shares = _exactly((array("Q", (_rank(_content(row, seed)) for row in rows)) for rows in sources), fraction)

    def wanted(row: Any) -> bool:
        rank = _rank(_content(row, seed))
        at = bisect_left(held, rank)
        return (at < len(held) and held[at] == rank) == held_out

    return Split(wanted, shares)


def _exactly(sources: Iterable[array[int]], fraction: float) -> tuple[array[int], list[Share]]:
    """The ranks that are held out, sorted, and how many rows of each source that is.

    Shares are rounded so that their sum is the share of all rows, rounded: 15 of 4 times 10 rows at 0.375, not 16.
    Equal rows are on one side wherever they stand: a source whose rows another one holds out too counts these first.
    """
    import numpy as np

    held, seen = np.empty(0, np.uint64), np.empty(0, np.uint64)
    shares: list[Share] = []
    rows = due = 0
    for source in sources:
        ranks, sizes = np.unique(np.frombuffer(source, np.uint64), return_counts=True)
        rows += len(source)
        asked = math.floor(Fraction(repr(fraction)) * rows + Fraction(1, 2)) - due
        due += asked
        before = int(sizes[np.isin(ranks, held)].sum())
        new = np.isin(ranks, seen, invert=True)
        taken = _lowest(sizes[new], asked - before)
        held = np.union1d(held, ranks[new][taken])
        seen = np.union1d(seen, ranks)
        shares.append(Share(held_out=before + int(sizes[new][taken].sum()), rows=len(source), asked=asked))
    return array("Q", held.tobytes()), shares


def _lowest(sizes: NDArray[np.int64], wanted: int) -> list[int]:
    """Places of the first groups of equal rows that hold so many rows together, those passed over that hold too many;
    where there are none that do, as near to it as one group more or less is.
    """
    taken: list[int] = []
    passed: int | None = None
    for at, size in enumerate(sizes.tolist()):
        if wanted <= 0:
            break
        if size <= wanted:
            taken.append(at)
            wanted -= size
        elif passed is None or size < sizes[passed]:
            passed = at
    if passed is not None and wanted > 0 and sizes[passed] - wanted <= wanted:
        taken.append(passed)
    return taken


def _content(item: Any, seed: int) -> bytes:
    values = [getattr(item, f.name) for f in fields(item) if f.name != "origin"] if is_dataclass(item) else item
    return json.dumps([seed, values], sort_keys=True, default=str).encode()


def _rank(data: bytes) -> int:
    """A number of 64 bits that depends on these bytes alone."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")
