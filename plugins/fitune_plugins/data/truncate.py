"""Data stage `truncate`: rows longer than `[train] length` are cut, split or dropped, and counted.

A row of two answers that are compared is as long as both of its documents together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from fitune import DataContext, DataStage, Example, Problem, Stage, hookimpl
from fitune_plugins.data.pair_cut import cut, is_compared

SUMMARY = "Cut, split or drop rows longer than [train] length"

LEFT_OUT = "rows dropped: too long"


@dataclass(frozen=True, slots=True, kw_only=True)
class TruncateOptions:
    """Options of the stage `truncate`."""

    policy: Literal["right", "left", "split", "drop"] = "right"
    """What becomes of a long row: its right or left end is cut off, it is split into several, or it is left out. Of
    answers that are compared the right is the end of both answers, and the left the beginning of both prompts."""


def _check_compared(options: TruncateOptions) -> Iterable[Problem]:
    if options.policy == "split":
        what = "answers that are compared cannot be split"
        yield Problem(key="policy", what=what, fix='Use policy = "right", "left" or "drop"')


COUNTED = {
    "right": "rows cut at the right",
    "left": "rows cut at the left",
    "split": "rows split",
    "drop": LEFT_OUT,
}


def _make(options: TruncateOptions, context: DataContext) -> Stage:
    length, policy = context.length, options.policy

    def truncate(examples: Iterator[Example]) -> Iterator[Example]:
        for example in examples:
            if len(example.input_ids) <= length:
                yield example
            elif is_compared(example) and (policy == "right" or policy == "left"):
                found = cut(example, length, policy)
                for what in found.done:
                    context.count(what)
                yield from () if found.example is None else (found.example,)
            else:
                context.count(COUNTED[policy])
                yield from _parts(example, length, policy)

    return truncate


def _parts(example: Example, length: int, policy: str) -> Iterator[Example]:
    """What is kept of a long row."""
    tokens = len(example.input_ids)
    starts = {"right": [0], "left": [tokens - length], "split": range(0, tokens, length), "drop": []}[policy]
    for start in starts:
        part = slice(start, start + length)
        yield Example(input_ids=example.input_ids[part], labels=example.labels[part], origin=example.origin)


@hookimpl
def ft_data_stages() -> Iterable[DataStage[TruncateOptions]]:
    """Offer the stage."""
    compared: DataStage[TruncateOptions] = DataStage(
        name="truncate",
        summary=SUMMARY,
        options=TruncateOptions,
        takes="examples",
        gives="examples",
        make=_make,
        check=_check_compared,
    )
    yield DataStage(
        name="truncate",
        summary=SUMMARY,
        options=TruncateOptions,
        takes="examples",
        gives="examples",
        closes="end",
        make=_make,
        for_preferences=compared,
    )
