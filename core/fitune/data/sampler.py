"""Which rows make up each optimizer step: a function of seed and position alone, whoever asks and however often."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fitune.plugin.dataflow import Example

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def order(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of the rows in an epoch: a permutation that depends on seed and epoch alone."""
    import numpy as np

    return np.random.default_rng((seed, epoch)).permutation(rows)


def windows(rows: int, window: int, seed: int, start: int = 0) -> Iterator[tuple[float, NDArray[np.int64]]]:
    """Without end, the rows of one optimizer step each, with the epochs that are done after it.

    The last window of an epoch holds the rows that are left, so every row is trained on once an epoch. `start` is the
    number of steps that were made before: nothing is replayed to get there.
    """
    per_epoch = -(-rows // window)
    epoch, skipped = divmod(start, per_epoch)
    while True:
        rows_of_epoch = order(rows, seed, epoch)
        for first in range(skipped * window, rows, window):
            chosen = rows_of_epoch[first : first + window]
            yield epoch + (first + len(chosen)) / rows, chosen
        epoch, skipped = epoch + 1, 0


def shares(
    window: NDArray[np.int64], tokens: Sequence[int], micro_batch: int, processes: int
) -> list[list[NDArray[np.int64]]]:
    """The micro-batches of a window that each process takes, in their order; `tokens` are those of its rows.

    They are the micro-batches that one process alone would make; the last may be short. None takes more than its part
    of them, rounded up, and the longest go, one after another, to whoever has the fewest tokens by then (Graham,
    "Bounds on multiprocessing timing anomalies", 1969: the sum of the largest is at most 4/3 of the least possible,
    where numbers are not bounded). A micro-batch has the tokens of its longest row in each of its rows.
    """
    starts = range(0, len(window), micro_batch)
    sizes = [max(tokens[at : at + micro_batch]) * len(window[at : at + micro_batch]) for at in starts]
    most = -(-len(sizes) // processes)
    given: list[list[int]] = [[] for _ in range(processes)]
    loads = [0] * processes
    for number in sorted(range(len(sizes)), key=lambda number: -sizes[number]):  # stable: of equals, the first
        process = min((p for p in range(processes) if len(given[p]) < most), key=lambda p: (loads[p], len(given[p]), p))
        given[process].append(number)
        loads[process] += sizes[number]
    return [[window[starts[n] : starts[n] + micro_batch] for n in sorted(numbers)] for numbers in given]


def longest(rows: Sequence[Example], number: int) -> list[Example]:
    """The longest rows; of equally long ones those with the most documents, which cost a little more."""
    return sorted(rows, key=lambda row: (len(row.input_ids), len(row.lengths), row.targets), reverse=True)[:number]
