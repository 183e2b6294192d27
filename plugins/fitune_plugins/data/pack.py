"""Data stage `pack`: several documents to a row, so that little of a row is padding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from fitune import IGNORED, DataContext, DataError, DataStage, Example, Stage, hookimpl


@dataclass(frozen=True, slots=True, kw_only=True)
class PackOptions:
    """Options of the stage `pack`."""

    buffer_tokens: Annotated[int, Ge(1)] = 2**24
    """Pack the documents of so many tokens together. More of them fit better, and take 8 bytes of memory a token,
    twice while their rows are made."""


def _make(options: PackOptions, context: DataContext) -> Stage:
    def pack(examples: Iterator[Example]) -> Iterator[Example]:
        held: list[Example] = []
        tokens = 0
        for example in examples:
            if len(example.input_ids) > context.length:
                raise DataError(
                    f"{example.origin}: {len(example.input_ids)} tokens do not fit into a row of [train] length = "
                    f'{context.length}. Add a [[data.stage]] with use = "truncate" before "pack"'
                )
            held.append(example)
            tokens += len(example.input_ids)
            if tokens >= options.buffer_tokens:
                yield from _rows(held, context.length)
                held, tokens = [], 0
        yield from _rows(held, context.length)

    return pack


def _rows(examples: Sequence[Example], length: int) -> Iterator[Example]:
    """Rows of at most `length` tokens that hold each example once."""
    import numpy as np

    from fitune_plugins.data.best_fit import best_fit

    lengths = np.array([len(example.input_ids) for example in examples], dtype=np.int64)
    for documents in best_fit(lengths, length):
        yield examples[documents[0]] if len(documents) == 1 else join([examples[d] for d in documents])


def join(examples: Sequence[Example]) -> Example:
    """One row of these documents, in this order."""
    import numpy as np

    labels = np.concatenate([example.labels for example in examples])
    lengths = tuple(n for example in examples for n in example.lengths or (len(example.input_ids),))
    labels[np.cumsum((0, *lengths[:-1]))] = IGNORED
    return Example(
        input_ids=np.concatenate([example.input_ids for example in examples]),
        labels=labels,
        origin=examples[0].origin,
        lengths=lengths,
        extras={name: tuple(n for e in examples for n in e.extras[name]) for name in examples[0].extras},
    )


@hookimpl
def ft_data_stages() -> Iterable[DataStage[PackOptions]]:
    """Offer the stage."""
    yield DataStage(
        name="pack",
        summary="Several documents to a row of [train] length, none of which sees another",
        options=PackOptions,
        takes="examples",
        gives="examples",
        make=_make,
        packs=True,
    )
