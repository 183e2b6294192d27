"""Figures of runs as people read them; a dash for what is not known."""

from __future__ import annotations

from collections.abc import Sequence

from fitune.plugin.units import GIB, MIB, gib
from fitune.runs.lock import local_time
from fitune.runs.record import HeldOut, MemoryRecord

NOTHING = "-"


def steps_text(made: int | None, of: int | None) -> str:
    """Steps made, and of how many."""
    if made is None and of is None:
        return NOTHING
    return f"{made or 0:,}" if of is None else f"{made or 0:,}/{of:,}"


def loss_text(loss: float | None) -> str:
    """A loss, in nats a token."""
    return NOTHING if loss is None else f"{loss:.4f}"


def share_text(share: float | None) -> str:
    """A share of exact answers."""
    return NOTHING if share is None else f"{100 * share:.1f} %"


def held_out_text(held_out: HeldOut | None) -> str:
    """An evaluation, in a line."""
    if held_out is None:
        return NOTHING
    found = [] if held_out.loss is None else [f"loss {loss_text(held_out.loss)}"]
    found += [] if held_out.exact_match is None else [f"exact match {share_text(held_out.exact_match)}"]
    return f"{', '.join(found) or NOTHING} after {held_out.step:,} steps"


def size_text(size: int | None) -> str:
    """Bytes."""
    if size is None:
        return NOTHING
    if size < MIB / 10:
        return f"{size / 2**10:.1f} KiB"
    return gib(size) if size >= GIB / 10 else f"{size / MIB:.1f} MiB"


def memory_text(memory: MemoryRecord | None) -> str:
    """The most that was measured, and of which memory."""
    return NOTHING if memory is None else f"{size_text(memory.peak)} {memory.kind}"


def duration_text(seconds: float | None) -> str:
    """A span of time in its two largest units."""
    if seconds is None:
        return NOTHING
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, left = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {left:02} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 48 else f"{hours // 24} d {hours % 24:02} h"


def when_text(moment: str | None) -> str:
    """A moment, in this machine's time."""
    return NOTHING if moment is None else local_time(moment)


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines, each column as wide as its widest cell."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
