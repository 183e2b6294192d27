"""From a recipe's sources and stages to examples, and from examples to the micro-batches of each step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from fitune.dataflow import Batch, DataContext, Example, Stage
from fitune.errors import DataError
from fitune.recipe import Use
from fitune.records import DataStage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Uses = Sequence[Use[DataStage[Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Data that are ready to be batched."""

    examples: list[Example]
    counts: tuple[tuple[str, int], ...]
    """What the stages counted, e.g. rows cut."""


def prepare(sources: Uses, stages: Uses, context: DataContext) -> Prepared:
    """Read the sources through all stages but the last, which makes batches.

    Rows without a single target token are left out and counted. Raises `DataError` for a row longer than the
    recipe's length, and if nothing is left to train on.
    """
    counts: Counter[str] = Counter()

    def count(what: str) -> None:
        counts[what] += 1

    context = replace(context, count=count)
    stream: Iterator[Any] = chain.from_iterable(use.record.make(use.options, context)(iter(())) for use in sources)
    for use in stages[:-1]:
        stream = use.record.make(use.options, context)(stream)
    examples: list[Example] = []
    for example in stream:
        if len(example.input_ids) > context.length:
            raise DataError(
                f"{example.origin}: {len(example.input_ids)} tokens, over [train] length = {context.length}. "
                'Add a [[data.stage]] with use = "truncate" behind those that lengthen rows'
            )
        if example.targets:
            examples.append(example)
        else:
            count("rows left out: no token to train on")
    if not examples:
        left = "; ".join(f"{what}: {number}" for what, number in counts.items())
        raise DataError(f"no row is left to train on{f' ({left})' if left else ': the sources are empty'}")
    return Prepared(examples=examples, counts=tuple(counts.items()))


def batch_maker(stages: Uses, context: DataContext) -> Stage:
    """The last stage, which turns lists of examples into batches."""
    last = stages[-1]
    return last.record.make(last.options, context)


def order(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of the rows in an epoch: a permutation that depends on seed and epoch alone."""
    import numpy as np

    return np.random.default_rng((seed, epoch)).permutation(rows)


def windows(rows: int, window: int, seed: int) -> Iterator[tuple[float, NDArray[np.int64]]]:
    """Without end, the rows of one optimizer step each, with the epochs that are done after it.

    The last window of an epoch holds the rows that are left, so every row is trained on once an epoch.
    """
    epoch = 0
    while True:
        rows_of_epoch = order(rows, seed, epoch)
        for start in range(0, rows, window):
            chosen = rows_of_epoch[start : start + window]
            yield epoch + (start + len(chosen)) / rows, chosen
        epoch += 1


def share(window: NDArray[np.int64], micro_batch: int, process: int, processes: int) -> list[NDArray[np.int64]]:
    """The micro-batches of a window that one process takes; the last may be short, and some have one fewer."""
    return [window[at : at + micro_batch] for at in range(process * micro_batch, len(window), processes * micro_batch)]


def batches(examples: Sequence[Example], picks: Sequence[NDArray[np.int64]], make: Stage) -> Iterator[Batch]:
    """The batches of these rows, one a pick."""
    return make([examples[row] for row in pick] for pick in picks)
