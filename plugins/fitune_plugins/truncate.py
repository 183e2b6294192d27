"""Data stage `truncate`: rows longer than `[train] length` are cut or dropped, and counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from fitune import DataContext, DataStage, Example, hookimpl
from fitune.records import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class TruncateOptions:
    """Options of the stage `truncate`."""

    side: Literal["right", "left", "drop"] = "right"
    """Which end of a long row is cut off; "drop" leaves long rows out."""


def _make(options: TruncateOptions, context: DataContext) -> Stage:
    kept = {"right": slice(None, context.length), "left": slice(-context.length, None)}

    def truncate(examples: Iterator[Example]) -> Iterator[Example]:
        for example in examples:
            if len(example.input_ids) <= context.length:
                yield example
                continue
            if options.side == "drop":
                context.count("rows dropped: too long")
                continue
            context.count(f"rows cut at the {options.side}")
            part = kept[options.side]
            yield Example(input_ids=example.input_ids[part], labels=example.labels[part], origin=example.origin)

    return truncate


@hookimpl
def ft_data_stages() -> Iterable[DataStage[TruncateOptions]]:
    """Offer the stage."""
    yield DataStage(
        name="truncate",
        summary="Cut or drop rows longer than [train] length",
        options=TruncateOptions,
        takes="examples",
        gives="examples",
        make=_make,
    )
