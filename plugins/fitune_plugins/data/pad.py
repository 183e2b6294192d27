"""Data stage `pad`: rows of a micro-batch to one length, on the right. Shapes: B rows, S tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge

from fitune import IGNORED, Batch, DataContext, DataStage, Example, Stage, hookimpl

if TYPE_CHECKING:
    from torch import Tensor


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
            padding = _padding(examples, length)
            lengths = _documents(examples, padding)
            if lengths:
                _fill(input_ids, examples)
            yield Batch(
                input_ids=input_ids,
                labels=labels,
                targets=sum(example.targets for example in examples),
                tokens=sum(len(example.input_ids) for example in examples),
                positions=_positions_BS(lengths, length) if lengths else None,
                lengths=lengths,
                extras=_extras(examples, padding),
            )

    return pad


def _fill(input_ids_BS: Tensor, examples: Sequence[Example]) -> None:
    """Pad packed rows with a token of their own, in place of the pad token.

    Padding that is a document of its own sees nothing else: where a model's embedding of the pad token is zero (Gemma
    3n), so is all that the layers make of it, and the gradient of its root mean square is no number.
    """
    for row, example in enumerate(examples):
        input_ids_BS[row, len(example.input_ids) :] = int(example.input_ids[-1])


def _padding(examples: Sequence[Example], length: int) -> list[list[int]]:
    """Tokens of the documents of padding behind each row; none if no row is packed.

    Padding is cut where it is longer than every document, as it might go past a model's last position.
    """
    if not any(example.lengths for example in examples):
        return [[] for _ in examples]
    longest = max(max(example.lengths or (len(example.input_ids),)) for example in examples)
    return [[min(longest, length - at) for at in range(len(e.input_ids), length, longest)] for e in examples]


def _documents(examples: Sequence[Example], padding: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Tokens of each document, row after row, a row's padding behind its own; empty if no row is packed."""
    if not any(example.lengths for example in examples):
        return ()
    rows = zip(examples, padding, strict=True)
    return tuple(n for example, behind in rows for n in (*(example.lengths or (len(example.input_ids),)), *behind))


def _extras(examples: Sequence[Example], padding: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """The extras of each document, shape `[documents]`; those of padding are 0."""
    import torch

    found: dict[str, Tensor] = {}
    for name in examples[0].extras:
        rows = zip(examples, padding, strict=True)
        numbers = [n for example, behind in rows for n in (*example.extras[name], *(0.0 for _ in behind))]
        found[name] = torch.tensor(numbers, dtype=torch.float32)
    return found


def _positions_BS(lengths: Sequence[int], length: int) -> Tensor:  # noqa: N802 - shape suffix
    """Positions from 0 in each document."""
    import torch

    return torch.cat([torch.arange(tokens) for tokens in lengths]).view(-1, length)


@hookimpl
def ft_data_stages() -> Iterable[DataStage[PadOptions]]:
    """Offer the stage."""
    yield DataStage(
        name="pad",
        summary="Rows of a micro-batch to one length, padded on the right",
        options=PadOptions,
        takes="examples",
        gives="batches",
        closes="end",
        make=_make,
    )
