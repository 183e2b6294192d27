"""Few shapes for many batches: what a recorded micro-batch is recorded for, and what is padded to it.

What is padded is a function of the batch alone, so that a run computes the same whether a micro-batch is replayed or
not. Shapes: B rows, S tokens of each, N documents of all rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

from fitune import IGNORED, Batch

if TYPE_CHECKING:
    from torch import Tensor

LENGTHS = 16
"""Lengths that rows are padded to, at most: a 16th of `[train] length`, two 16ths and so on."""

TOKENS = 64
"""Tokens in which lengths are counted."""

QUARTERS = 4
"""Numbers of targets, and longest documents, that are told apart for one length."""

ROWS = 128
"""Targets in which their numbers are counted, as `chunked-loss` does."""

DOCUMENTS = 16
"""Documents in which their numbers are counted."""

Shape = tuple[object, ...]
"""All that decides what is computed for a batch, but the numbers in its tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """The shapes that batches of one run are padded to."""

    length: int
    """Most tokens of a row (`[train] length`)."""
    more_targets: bool
    """Whether the loss takes a batch that says more targets than it has."""

    def padded(self, batch: Batch) -> Batch:
        """The batch, on the host, in the shape that its like have."""
        rows, tokens = batch.input_ids.shape
        length = max(tokens, min(self.length, _up(tokens, _up(-(-self.length // LENGTHS), TOKENS))))
        targets = batch.targets
        if self.more_targets:
            quarter = _up(-(-rows * length // QUARTERS), ROWS)
            targets = max(targets, min(_up(targets, quarter), rows * (length - 1)))
        return replace(_packed(_longer(batch, length)), targets=targets)


def shape_of(batch: Batch) -> Shape:
    """What a batch has in common with those that it can be replayed for."""
    sizes = tuple((name, tuple(tensor.shape)) for name, tensor in batch.tensors().items())
    return (*sizes, batch.longest, batch.targets)


def _up(number: int, unit: int) -> int:
    return -(-number // unit) * unit


def _longer(batch: Batch, length: int) -> Batch:
    """With padding behind each row: its last token again, which is a pad token where there is one, with no label.

    Under causal attention no token sees it. Packed rows get documents of padding, none longer than those there are.
    """
    import torch
    import torch.nn.functional as F

    more = length - batch.input_ids.shape[1]
    if not more:
        return batch
    ids = torch.cat([batch.input_ids, batch.input_ids[:, -1:].expand(-1, more)], dim=1)
    labels = F.pad(batch.labels, (0, more), value=IGNORED)
    if batch.positions is None:
        return replace(batch, input_ids=ids, labels=labels)
    longest = max(batch.lengths)
    tail = tuple(min(longest, more - at) for at in range(0, more, longest))
    behind = torch.cat([torch.arange(n) for n in tail]).expand(len(ids), -1)
    rows = list(_rows(batch.lengths, batch.input_ids.shape[1]))
    lengths = tuple(n for row in rows for n in (*row, *tail))
    positions = torch.cat([batch.positions, behind], dim=1)
    parted = {name: extra.split([len(row) for row in rows]) for name, extra in batch.extras.items()}
    extras = {name: torch.cat([F.pad(row, (0, len(tail))) for row in rows]) for name, rows in parted.items()}
    return replace(batch, input_ids=ids, labels=labels, positions=positions, lengths=lengths, extras=extras)


def _rows(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """The lengths of documents row by row."""
    row: list[int] = []
    for length in lengths:
        row.append(length)
        if sum(row) == tokens:
            yield row
            row = []


def _packed(batch: Batch) -> Batch:
    """With the ends of documents as a tensor, and with documents of no token behind them."""
    if batch.positions is None:
        return batch
    import torch
    import torch.nn.functional as F

    tokens = batch.input_ids.shape[1]
    ends = [0, *accumulate(batch.lengths)]
    ends += ends[-1:] * (_up(len(batch.lengths), DOCUMENTS) - len(batch.lengths))
    longest = min(tokens, _up(max(batch.lengths), -(-tokens // QUARTERS)))
    extras = {name: F.pad(extra, (0, len(ends) - 1 - len(extra))) for name, extra in batch.extras.items()}
    return replace(batch, ends=torch.tensor(ends, dtype=torch.int32), longest=longest, extras=extras)


def copy_into(static: Batch, batch: Batch, *, pin: bool) -> None:
    """Put a batch's numbers, from the host, where those of another one of its shape are; none waits for the device."""
    now = batch.tensors()
    for name, tensor in static.tensors().items():
        _copy(tensor, now[name], pin=pin)


def _copy(to: Tensor, tensor: Tensor, *, pin: bool) -> None:
    to.copy_(tensor.pin_memory() if pin else tensor, non_blocking=True)
