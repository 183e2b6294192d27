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


def share(window: NDArray[np.int64], micro_batch: int, process: int, processes: int) -> list[NDArray[np.int64]]:
    """The micro-batches of a window that one process takes; the last may be short, and some have one fewer."""
    return [window[at : at + micro_batch] for at in range(process * micro_batch, len(window), processes * micro_batch)]


def longest(rows: Sequence[Example], number: int) -> list[Example]:
    """The longest rows; of equally long ones those with the most documents, which cost a little more."""
    return sorted(rows, key=lambda row: (len(row.input_ids), len(row.lengths), row.targets), reverse=True)[:number]
