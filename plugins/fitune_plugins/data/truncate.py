"""Data stage `truncate`: rows longer than `[train] length` are cut, split or dropped, and counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from fitune import DataContext, DataStage, Example, Stage, hookimpl

LEFT_OUT = "rows dropped: too long"


@dataclass(frozen=True, slots=True, kw_only=True)
class TruncateOptions:
    """Options of the stage `truncate`."""

    policy: Literal["right", "left", "split", "drop"] = "right"
    """What becomes of a long row: its right or left end is cut off, it is split into several, or it is left out."""


def _make(options: TruncateOptions, context: DataContext) -> Stage:
    length = context.length
    counted = {
        "right": "rows cut at the right",
        "left": "rows cut at the left",
        "split": "rows split",
        "drop": LEFT_OUT,
    }

    def parts(tokens: int) -> Iterator[slice]:
        """What is kept of a row of so many tokens."""
        if options.policy == "right":
            yield slice(0, length)
        elif options.policy == "left":
            yield slice(tokens - length, tokens)
        elif options.policy == "split":
            yield from (slice(start, start + length) for start in range(0, tokens, length))

    def truncate(examples: Iterator[Example]) -> Iterator[Example]:
        for example in examples:
            if len(example.input_ids) <= length:
                yield example
                continue
            context.count(counted[options.policy])
            for part in parts(len(example.input_ids)):
                yield Example(input_ids=example.input_ids[part], labels=example.labels[part], origin=example.origin)

    return truncate


@hookimpl
def ft_data_stages() -> Iterable[DataStage[TruncateOptions]]:
    """Offer the stage."""
    yield DataStage(
        name="truncate",
        summary="Cut, split or drop rows longer than [train] length",
        options=TruncateOptions,
        takes="examples",
        gives="examples",
        closes="end",
        make=_make,
    )
