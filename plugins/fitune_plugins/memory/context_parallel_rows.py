"""Parts of rows: equally many tokens for each process, and the first of the next part.

A token's loss is that of the one behind it. So each part ends with a token more, whose label its last token predicts;
that token's own results are of no use, and attention leaves it out. No loss need know of parts: each label counts in
exactly one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fitune import IGNORED, Batch, ModelError


def part_of(batch: Batch, count: int, place: int) -> Batch:
    """One of so many parts of a batch on the host, from 0. Rows are padded to what can be shared out evenly."""
    if batch.ends is not None:
        raise ModelError("context-parallel takes no batch whose documents' ends are given as a tensor")
    length = batch.input_ids.shape[1]
    tokens = -(-length // count)
    more, begin = count * tokens - length, place * tokens
    own = slice(begin, begin + tokens + 1)
    labels = F.pad(batch.labels, (0, more + 1), value=IGNORED)[:, own].contiguous()
    return replace(
        batch,
        input_ids=F.pad(batch.input_ids, (0, more + 1))[:, own].contiguous(),
        labels=labels,
        targets=int((labels[:, 1:] != IGNORED).sum()),
        tokens=min(batch.tokens, labels.numel()),
        positions=None if batch.positions is None else _positions(batch.positions, more + 1)[:, own].contiguous(),
        lengths=tuple(_lengths(batch.lengths, length, more)),
        begin=begin,
    )


def _positions(positions_BS: Tensor, more: int) -> Tensor:
    """With those of padding, which is a document of its own."""
    return torch.cat([positions_BS, torch.arange(more).expand(len(positions_BS), -1)], dim=1)


def _lengths(lengths: tuple[int, ...], row: int, more: int) -> Iterator[int]:
    """Those of documents, row after row, with those of padding behind each."""
    done = 0
    for length in lengths:
        yield length
        done += length
        if more and done % row == 0:
            yield more
