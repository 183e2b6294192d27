"""Several cards of one kind, a process on each: what NCCL takes of each beside the allocator, and how fast they talk.

What NCCL takes is sourced: 544 MiB of each of two cards and 688 MiB of each of more, for one communicator on A100s
with NVLink, once it has summed (github.com/NVIDIA/nccl/issues/964). It grows with its channels, so with the links of a
card (github.com/NVIDIA/nccl/issues/864): a run's on two and four H200s took 286 to 290 MiB (`benchmarks/several.json`,
`several_4.json`), and the larger number is kept. Each further communicator takes as much again: a run has one, and
another for the group of processes that share rows.
"""

from __future__ import annotations

import dataclasses

from fitune.errors import RunError
from fitune.memory.cards.cards import Card
from fitune.plugin.units import MIB

OF_TWO, OF_MORE = 544 * MIB, 688 * MIB
"""Bytes that NCCL takes of each card, of two and of more than two."""

NCCL_SOURCE = "sourced, more than was measured on H200s: of A100s with NVLink (github.com/NVIDIA/nccl/issues/964)"

NO_NCCL = "none: the budget is taken as it was given"

MOST = 1024
"""Cards of a run, at most."""


def several(card: Card, count: int) -> Card:
    """A card as one of so many of its kind that a run has. Raises `RunError` for a number that cannot be.

    A budget is taken as it was given: NCCL's part is taken off before.
    """
    if not 1 <= count <= MOST:
        raise RunError(f"a run on {count} cards cannot be. Give a number from 1 to {MOST}")
    if count == 1:
        return dataclasses.replace(card, count=1, nccl=0)
    return dataclasses.replace(card, count=count, nccl=_of(card, count))


def with_groups(card: Card, sharing: int) -> Card:
    """A card of a run in which so many processes share rows, and talk about them in a group of their own."""
    if sharing in (1, card.count):
        return card
    return dataclasses.replace(card, nccl=_of(card, card.count) + _of(card, sharing))


def _of(card: Card, processes: int) -> int:
    """Bytes that a communicator of so many processes takes of each card."""
    return 0 if card.context == 0 else OF_TWO if processes == 2 else OF_MORE
