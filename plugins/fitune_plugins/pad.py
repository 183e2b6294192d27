"""Data stage `pad`: rows of a micro-batch to one length, on the right."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from fitune import IGNORED, Batch, DataContext, DataStage, Example, hookimpl
from fitune.dataflow import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class PadOptions:
    """Options of the stage `pad`."""

    to: Literal["longest", "length"] = "longest"
    """Pad to the longest row of the micro-batch, or always to `[train] length`."""
    multiple_of: Annotated[int, Ge(1)] = 1
    """Round the padded length up to a multiple of this, but not over `[train] length`."""


def _make(options: PadOptions, context: DataContext) -> Stage:
    import torch

    pad_id = context.tokenizer.pad_token_id

    def pad(micro_batches: Iterator[Sequence[Example]]) -> Iterator[Batch]:
        for examples in micro_batches:
            longest = max(len(e.input_ids) for e in examples)
            rounded = -(-longest // options.multiple_of) * options.multiple_of
            length = context.length if options.to == "length" else max(longest, min(rounded, context.length))
            input_ids = torch.full((len(examples), length), pad_id, dtype=torch.int64)
            labels = torch.full((len(examples), length), IGNORED, dtype=torch.int64)
            for row, example in enumerate(examples):
                input_ids[row, : len(example.input_ids)] = torch.from_numpy(example.input_ids)
                labels[row, : len(example.labels)] = torch.from_numpy(example.labels)
            yield Batch(
                input_ids=input_ids,
                labels=labels,
                targets=sum(example.targets for example in examples),
                tokens=sum(len(example.input_ids) for example in examples),
            )

    return pad


@hookimpl
def ft_data_stages() -> Iterable[DataStage[PadOptions]]:
    """Offer the stage."""
    yield DataStage(
        name="pad",
        summary="Rows of a micro-batch to one length, padded on the right",
        options=PadOptions,
        takes="examples",
        gives="batches",
        make=_make,
    )
