"""What a person, or a program, is told of a run that ran out of memory. Every number says whose it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from fitune.memory.ledger import Holding
from fitune.memory.levers import Measured
from fitune.memory.oom.explain import Explanation, Variant
from fitune.memory.oom.failure import Failure
from fitune.memory.oom.message import Figure
from fitune.memory.oom.traceback import model_frame
from fitune.memory.trace.log import Block
from fitune.plugin.units import GIB, MIB, gib

SHOWN = 5
"""Rows of a list that are shown to a person."""


def lines(found: Explanation) -> Iterator[str]:
    """Everything, for people."""
    yield from _said(found)
    yield ""
    yield from _request(found)
    yield ""
    yield from _filled(found)
    yield from _remedies(found)


def _said(found: Explanation) -> Iterator[str]:
    """The message, and what it means for the whole run."""
    message, room = found.message, found.room
    text = f"torch asked for {_size(message.asked)}"
    if message.free and message.missing:
        gap = message.missing
        short = f"{_size(gap)} were missing" if gap.bytes > 0 else "which is more: the free memory was in pieces"
        text += f" with {_size(message.free)} free: {short}"
    yield f"{text} (message)"
    if message.count > 1:
        yield f"  {message.count} messages in {message.source}; this is the first"
    where = model_frame(message.frames)
    if where is not None:
        doing = f"in the {message.phase} phase, " if message.phase else ""
        yield f"  {doing}at {where} (traceback)"
    context = f"{_bytes(room.context)} of context ({'message' if room.context_known else 'assumed'})"
    others = f" and {_bytes(room.others)} of other processes (message)" if room.others else ""
    total = _size(message.total) if message.total else _bytes(found.card.memory + room.others)
    card = f"{found.card.name}, {total}" if found.named else f"{found.card.name}, told by its {total},"
    yield f"card     {card} less {context}{others}: {_bytes(room.capacity)} for the run"
    needs = f"recipe   needs {_bytes(found.forecast.needed)} to get through"
    if found.missing > 0:
        yield f"{needs}, so {_bytes(found.missing)} are missing (forecast)"
    else:
        yield f"{needs}, so {_bytes(-found.missing)} would be spare (forecast)"
    for line in found.added:
        yield f"         {line}"


def _request(found: Explanation) -> Iterator[str]:
    """Which tensor it was."""
    asked = _size(found.message.asked)
    if found.sighting is not None:
        failure, off = found.sighting.failure, found.sighting.off
        yield f"the request: {_block(failure.block)} (forecast)"
        with_ = (
            f" with {_bytes(abs(off))} {'more' if off > 0 else 'less'} than that for the run" if abs(off) > MIB else ""
        )
        yield f"  fails{with_}, {_state(failure)}"
        return
    if found.failure is not None:
        yield f"this recipe runs out elsewhere: {_block(found.failure.block)} (forecast)"
        yield f"  asks for {_bytes(found.failure.asked)}, not {asked}: {_state(found.failure)}"
    else:
        yield f"this recipe gets through on this card (forecast), and never fails at {asked}"
        yield from _differences(found)
    if not found.variants:
        yield "  no run that is easily mistaken for it fails so either; was it another recipe, or other versions?"
        return
    yield f"runs that ask for {asked} with as much free (forecast):"
    for variant in found.variants:
        yield from _variant(found, variant)


def _variant(found: Explanation, variant: Variant) -> Iterator[str]:
    failure, off = variant.sighting.failure, variant.sighting.off
    yield f"  --set {variant.override}: {variant.meaning}"
    yield f"    {_block(failure.block)}"
    room = f", with a context of {_bytes(found.room.context - off)}" if not found.room.context_known else ""
    missing = variant.forecast.needed - failure.capacity
    yield f"    {_state(failure)}{room}; to get through, {_bytes(missing)} are missing"


def _differences(found: Explanation) -> Iterator[str]:
    """What a message may show that the forecast does not know of."""
    message, room, forecast = found.message, found.room, found.forecast
    if room.others:
        yield f"  other processes use {_bytes(room.others)} of the card (message): end them, or plan without"
    if room.context_known and message.in_use and message.reserved:
        context = message.in_use - message.reserved
        if context.bytes > GIB:
            yield f"  {_bytes(context.bytes)} in use are not torch's allocator's (message): libraries of their own"
    if message.allocated and message.allocated.bytes > forecast.allocated:
        yield (
            f"  tensors took {_size(message.allocated)} (message), {_bytes(forecast.allocated)} are the most that is "
            "forecast: the run had other rows, weights or plugins"
        )
    if message.unallocated and message.unallocated.bytes > max(2 * forecast.cached, GIB):
        fix = f'; add a [[memory.strategy]] use = "{found.growing}"' if found.growing else ""
        yield (
            f"  {_size(message.unallocated)} were reserved, but held by no tensor (message): rows of changing lengths "
            f"break memory up{fix}"
        )


def _filled(found: Explanation) -> Iterator[str]:
    when = "when it failed" if found.found else "at the recipe's peak"
    yield f"what the card held {when} (forecast)"
    for entry in found.entries:
        if entry.bytes >= MIB:
            yield f"  {entry.kind:<24}{_bytes(entry.bytes):>12}"
    if found.found:
        yield f"  {'held by no tensor':<24}{_bytes(found.found.unallocated):>12}"
    yield "  the largest beside weights:"
    for holding in found.largest[:SHOWN]:
        yield f"    {_bytes(holding.bytes):>12}  {_holding(holding)}"


def _remedies(found: Explanation) -> Iterator[str]:
    alone, together = found.remedies.alone, found.remedies.together
    if found.forecast.passes:
        return
    yield ""
    margin = _bytes(found.forecast.margin)
    yield f"changes that make this recipe fit, a margin of {margin} included, cheapest first (forecast)"
    if together:
        yield "  together:"
        for one in together:
            yield f"    {_change(one)}"
    for one in alone[:SHOWN]:
        yield f"  {_change(one)}"
    if not alone and not together:
        yield "  none was found: take a larger card, a smaller model or shorter rows"


def _change(one: Measured) -> str:
    cost = f"{one.compute:+.0%} compute" if abs(one.compute) >= 0.005 else "no more compute"
    result = {True: "same result", False: "changes the result", None: "effect on the result not known"}[one.lever.exact]
    return f"{one.lever.name:<54} frees {_bytes(one.saved):>10}, {cost}, {result}"


def _block(block: Block) -> str:
    what = f"{list(block.shape)} {block.dtype}" if block.shape else _bytes(block.bytes)
    where = f" in {block.module}" if block.module else ""
    step = f", step {block.step}" if block.step else ""
    made_by = f" of {block.operation}" if block.operation != block.phase else ""
    return f"{block.phase}{step}: {what}{made_by}{where}"


def _state(failure: Failure) -> str:
    return f"{_bytes(failure.free)} free, {_bytes(failure.allocated)} in tensors"


def _holding(holding: Holding) -> str:
    block = holding.block
    times = f"{holding.count} x " if holding.count > 1 else ""
    where = f", {block.module}" if block.module else ""
    return f"{times}{list(block.shape)} {block.dtype}, {block.kind}, {block.operation}{where}"


def _size(figure: Figure) -> str:
    return _bytes(figure.bytes)


def _bytes(size: int) -> str:
    return gib(size) if abs(size) >= GIB else f"{size / MIB:.2f} MiB"


def as_json(found: Explanation) -> dict[str, Any]:
    """Everything, for programs; sizes in bytes."""
    message = found.message
    figures = ("asked", "total", "free", "in_use", "allowed", "allocated", "unallocated", "private")
    values = {name: getattr(message, name) for name in figures}
    return {
        "message": {
            **{name: _figure_json(value) for name, value in values.items()},
            "others": [_figure_json(other) for other in message.others],
            "missing": _figure_json(message.missing),
            "count": message.count,
            "phase": message.phase,
            "frames": [str(frame) for frame in message.frames],
        },
        "card": {"name": found.card.name, "context": found.room.context, "context_known": found.room.context_known},
        "added": list(found.added),
        "capacity": found.room.capacity,
        "others": found.room.others,
        "forecast": {
            "needed": found.forecast.needed,
            "missing": found.missing,
            "margin": found.forecast.margin,
            "fits": found.forecast.passes,
        },
        "request": _failure_json(found.sighting.failure) if found.sighting else None,
        "runs_out_at": _failure_json(found.failure),
        "variants": [
            {
                "override": variant.override,
                "meaning": variant.meaning,
                "request": _failure_json(variant.sighting.failure),
                "context": found.room.context - variant.sighting.off,
                "missing": variant.forecast.needed - variant.sighting.failure.capacity,
            }
            for variant in found.variants
        ],
        "held": {entry.kind: entry.bytes for entry in found.entries},
        "largest": [{"count": h.count, "bytes": h.bytes, **_block_json(h.block)} for h in found.largest],
        "remedies": _measured_json(found.remedies.alone),
        "remedies_together": _measured_json(found.remedies.together),
    }


def _figure_json(figure: Figure | None) -> dict[str, int] | None:
    return None if figure is None else {"bytes": figure.bytes, "error": figure.error}


def _failure_json(failure: Failure | None) -> dict[str, Any] | None:
    if failure is None:
        return None
    sizes = {name: getattr(failure, name) for name in ("asked", "free", "allocated", "unallocated", "capacity")}
    return {**sizes, "tensor": _block_json(failure.block)}


def _block_json(block: Block) -> dict[str, Any]:
    names = ("kind", "phase", "step", "operation", "module", "dtype")
    return {**{name: getattr(block, name) for name in names}, "shape": list(block.shape), "size": block.bytes}


def _measured_json(measured: Iterable[Measured]) -> list[dict[str, Any]]:
    return [
        {
            "name": one.lever.name,
            "set": list(one.lever.overrides),
            "saved": one.saved,
            "compute": one.compute,
            "exact": one.lever.exact,
        }
        for one in measured
    ]
