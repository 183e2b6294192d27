"""The log of a traced run: every block of memory that it takes and gives back, in order, and what each is for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from fitune.compose.step import Phase

ROUNDING = 512
"""Bytes; the CUDA caching allocator rounds every request up to a multiple of it (`kMinBlockSize`)."""

Kind = Literal[
    "weights",
    "adapter",
    "master weights",
    "gradients",
    "optimizer state",
    "batch",
    "saved activations",
    "recomputed activations",
    "activation gradients",
    "temporaries",
    "loss",
    "kernel scratch",
    "cuBLAS workspace",
    "key-value cache",
    "gathered weights",
    "communication",
]
"""What memory is for. "saved activations" are kept from the forward for the backward pass; "activation gradients" is
what the backward pass makes; "gathered weights" are those of sharded layers while they are whole, and "communication"
is what collectives read and write; "loss" is all behind the model's last layer; "temporaries" is all else."""


@dataclass(slots=True)
class Block:
    """One block of memory: a tensor's storage, or what a kernel takes beside its results."""

    bytes: int
    """As asked for, not rounded."""
    kind: Kind
    phase: Phase
    operation: str
    """That made it, e.g. `aten.mm`."""
    module: str
    """Dotted name of the module that the operation belongs to; empty outside of all."""
    shape: tuple[int, ...] = ()
    dtype: str = ""
    """E.g. `bfloat16`."""
    step: int = 0
    """Optimizer step in which it was made, counted from 1; 0 before the first."""
    apart: bool = False
    """Whether it is of the pool that CUDA graphs have to themselves."""
    stream: int = 0
    """The CUDA stream that it was taken on; 0 is the one that computes."""

    @property
    def rounded(self) -> int:
        """Bytes that it takes of the allocator."""
        return -(-self.bytes // ROUNDING) * ROUNDING


@dataclass(slots=True)
class MemoryLog:
    """Blocks, and the order in which they are taken and given back."""

    blocks: list[Block] = field(default_factory=list)
    """Block n is `blocks[n - 1]`: numbers start at 1."""
    events: list[int] = field(default_factory=list)
    """A block's number where it is taken, its negative where it is given back."""
    phases: list[tuple[int, Phase, int]] = field(default_factory=list)
    """(index of the first event, phase, step), ascending."""
    releases: list[tuple[int, int]] = field(default_factory=list)
    """(index of the event before which what is cached was given back, how), ascending; how is as
    `fitune.memory.allocator.replay.replay` takes it."""

    def take(self, block: Block) -> int:
        """Take a block; gives its number."""
        self.blocks.append(block)
        self.events.append(len(self.blocks))
        return len(self.blocks)

    def give_back(self, number: int) -> None:
        """Give a block back."""
        self.events.append(-number)

    def pass_through(self, block: Block) -> None:
        """A block that is taken and given back at once."""
        self.give_back(self.take(block))

    def enter(self, phase: Phase, step: int) -> None:
        """What follows belongs to this phase."""
        if not self.phases or self.phases[-1][1:] != (phase, step):
            self.phases.append((len(self.events), phase, step))

    def release(self, how: int) -> None:
        """What the allocator keeps is given back to the card."""
        self.releases.append((len(self.events), how))

    @property
    def apart(self) -> frozenset[int]:
        """Numbers of the blocks of the pool that CUDA graphs have to themselves."""
        return frozenset(number for number, block in enumerate(self.blocks, 1) if block.apart)

    @property
    def streams(self) -> dict[int, int]:
        """Streams of the blocks that were taken on another than the one that computes, by their numbers."""
        return {number: block.stream for number, block in enumerate(self.blocks, 1) if block.stream}

    def sized(self) -> Iterator[tuple[int, int]]:
        """Events as an allocator takes them: (block, bytes), (-block, bytes), (0, how) for what is given back."""
        start = 0
        for at, how in self.releases:
            yield from self._sized(start, at)
            yield 0, how
            start = at
        yield from self._sized(start, len(self.events))

    def _sized(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        blocks = self.blocks
        return ((number, blocks[abs(number) - 1].bytes) for number in self.events[start:end])
