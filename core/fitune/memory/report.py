"""`ft plan` as a person reads it, and as a program does. Every number here is forecast, none measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from fitune.memory.cards.cards import Card
from fitune.memory.cards.several import NCCL_SOURCE, NO_NCCL
from fitune.memory.forecast import Forecast
from fitune.memory.ledger import Moment
from fitune.memory.levers import Measured, Refused
from fitune.memory.timing import json_of_time, time_lines
from fitune.memory.trace.log import Block
from fitune.plugin.levers import Lever
from fitune.plugin.options import toml_text
from fitune.plugin.recipe import Recipe
from fitune.plugin.units import GIB, MIB

BAR = 40
"""Columns of the timeline's longest bar."""

NEGLIGIBLE = MIB // 20
"""Bytes below which a kind of memory is left out of the ledger."""


def size(number: int) -> str:
    """Bytes, as a person reads them: to the megabyte, in GiB from 10 GiB on with that precision."""
    if abs(number) >= GIB:
        return f"{number / GIB:,.3f} GiB"
    return f"{number / MIB:,.1f} MiB"


def text(forecast: Forecast, name: str, notes: Sequence[str] = ()) -> Iterator[str]:
    """The lines of a plan; `notes` are of what was planned."""
    yield from verdict(forecast, name, notes)
    yield ""
    yield from _ledger(forecast)
    yield ""
    yield "Allocated at most, by phase"
    peak = max(phase.bytes for phase in forecast.ledger.phases)
    for phase in forecast.ledger.phases:
        mark = "  <- the peak" if phase.bytes == peak else ""
        yield f"  {phase.phase:<12} {size(phase.bytes):>12}{mark}"
    yield ""
    yield "What holds most at the peak, weights aside"
    for holding in forecast.ledger.largest:
        yield f"  {size(holding.bytes):>12}  {_holding(holding.block, holding.count)}"
    yield ""
    yield from _timeline(forecast.ledger.timeline)


def verdict(forecast: Forecast, name: str, notes: Sequence[str] = ()) -> Iterator[str]:
    """Whether it fits, and the figures that say so."""
    card, traced = forecast.card, forecast.trace
    if forecast.passes and forecast.reserved <= card.usable - forecast.margin:
        said = f"fits, {size(forecast.spare)} to spare"
    elif forecast.passes:
        said = "fits, but the allocator runs short and has to ask again, which costs time"
    elif forecast.needed <= card.usable:
        said = f"does not fit surely: {size(-forecast.spare)} of the margin are missing"
    else:
        said = f"does not fit: {size(forecast.needed - card.usable)} are missing"
    share = 100 * traced.trainable / traced.parameters
    each = " each" if card.count > 1 else ""
    yield f"{name} on {card.title}, {size(card.memory)}{each}: {said}"
    yield f"  rows       {_rows(forecast)}"
    yield f"  parameters {traced.parameters:,}, of which {traced.trainable:,} train ({share:.2f} %)"
    yield f"  allocated  {size(forecast.allocated):>12}  at most"
    segments = "segments that grow" if forecast.expandable else "segments of fixed size"
    yield f"  reserved   {size(forecast.reserved):>12}  at most, with {segments}; {size(forecast.needed)} would do"
    if forecast.pool:
        yield f"  graphs     {size(forecast.pool):>12}  of that in a pool of their own, which nothing else can use"
    yield f"  context    {size(card.context):>12}  {card.context_source}"
    if card.count > 1:
        yield f"  NCCL       {size(card.nccl):>12}  {NCCL_SOURCE if card.nccl else NO_NCCL}"
    yield f"  margin     {size(forecast.margin):>12}  what a forecast may be wrong by, as measured"
    yield from time_lines(forecast)
    for notice in (*notes, *traced.plan.notices, *traced.notices):
        yield f"  note       {notice}"


def _rows(forecast: Forecast) -> str:
    rows, length = forecast.shapes.training[0].input_ids.shape
    return f"{rows} x {length} tokens to a micro-batch{_each(forecast)}; from {forecast.shapes.source}"


def _each(forecast: Forecast) -> str:
    """Which cards have rows of their own."""
    cards, plan = forecast.card.count, forecast.trace.plan
    if cards == 1:
        return ""
    if plan.context_parallel == 1:
        return f" on each of {cards} cards"
    if plan.replicas == 1:
        return f", spread over {cards} cards"
    return f" of each {plan.context_parallel} of {cards} cards, spread over them"


def _ledger(forecast: Forecast) -> Iterator[str]:
    yield f"What it is for, at the peak ({_place(forecast.ledger.at)})"
    entries = [(str(entry.kind), entry.bytes) for entry in forecast.ledger.entries]
    entries += [*forecast.outside, ("fragmentation and cache", forecast.cached)]
    total = forecast.used
    for kind, number in sorted(entries, key=lambda entry: -entry[1]):
        if number >= NEGLIGIBLE:
            yield f"  {kind:<24} {size(number):>12}  {100 * number / total:5.1f} %"
    yield f"  {'together':<24} {size(total):>12}"


def _place(block: Block) -> str:
    module = block.module or ("the loss" if block.kind == "loss" else "the loop")
    return f"{block.phase}, {operation(block)} in {module}"


def _holding(block: Block, count: int) -> str:
    shape = " x ".join(map(str, block.shape)) or "a scalar"
    module = block.module or ("the loss" if block.kind == "loss" else "the loop")
    others = f" and {count - 1} more like it" if count > 1 else ""
    return f"{block.kind}: {shape} {block.dtype}, {operation(block)} in {module}{others}"


def operation(block: Block) -> str:
    """The operation's name without its overload."""
    return block.operation.removeprefix("aten.").partition(".")[0]


def _timeline(moments: Sequence[Moment]) -> Iterator[str]:
    if not moments:
        return
    yield "One step in time, allocated at most in each of its parts (the bar begins at the lowest)"
    low, high = min(m.bytes for m in moments), max(m.bytes for m in moments)
    for moment in moments:
        width = round(BAR * (moment.bytes - low) / max(1, high - low))
        yield f"  {moment.phase:<10} {size(moment.bytes):>12}  {'#' * width:<{BAR}}  {moment.place}".rstrip()


LESS = 0.005
"""Share of the compute that a lever must save to be told of, where it saves no memory."""


def lever_lines(recipe: Recipe, found: Iterable[Measured | Refused]) -> Iterator[str]:
    """The table of a recipe's levers: what saves most comes first; what saves nothing is but named."""
    all_found = list(found)
    measured = sorted((one for one in all_found if isinstance(one, Measured)), key=lambda one: -one.saved_allocated)
    yield "Levers, each traced by itself: memory saved, compute added for each token, whether the result stays the same"
    yield f"  {'allocated':>12} {'needed':>12} {'compute':>8}  {'result':<9} lever"
    saving = [one for one in measured if one.saved > 0 or one.saved_allocated > 0 or one.compute < -LESS]
    for one in saving:
        compute = f"{100 * one.compute:+.1f} %"
        allocated, needed = _signed(one.saved_allocated), _signed(one.saved)
        yield f"  {allocated:>12} {needed:>12} {compute:>8}  {_result(one.lever):<9} {one.lever.name}"
        yield f"  {'':>12} {'':>12} {'':>8}  {'':<9} {recipe_lines(recipe, one.lever)}"
    for refused in (one for one in all_found if isinstance(one, Refused)):
        yield f"  {'':>12} {'':>12} {'':>8}  {'refused':<9} {refused.lever.name}: {refused.reason}"
    if left_out := [one.lever.name for one in measured if one not in saving]:
        yield f"Save nothing here: {', '.join(left_out)}"


def _signed(saved: int) -> str:
    """Megabytes saved; what is taken instead has a minus."""
    return f"{saved / MIB:,.1f} MiB"


def _result(lever: Lever) -> str:
    return {True: "same", False: "changes", None: "unknown"}[lever.exact]


def recipe_lines(recipe: Recipe, lever: Lever) -> str:
    """What the lever changes, in the recipe's own words."""
    return "; ".join(_changed(recipe, key, value) for key, value in lever.changes)


def _changed(recipe: Recipe, key: str, value: object) -> str:
    if key != "memory.strategy" or not isinstance(value, list):
        return f"{key} = {toml_text(value)}"
    before = [use.table() for use in recipe.strategies]
    gone = {str(table["use"]) for table in before} - {str(table["use"]) for table in value}
    new = [", ".join(f"{k} = {toml_text(v)}" for k, v in table.items()) for table in value if table not in before]
    return "; ".join([*(f"[[memory.strategy]] {table}" for table in new), *(f"no {name}" for name in sorted(gone))])


def json_of(forecast: Forecast, found: Iterable[Measured | Refused] | None = None) -> dict[str, Any]:
    """The plan for a program; sizes are bytes."""
    traced, ledger = forecast.trace, forecast.ledger
    result: dict[str, Any] = {
        "card": json_of_card(forecast.card),
        "fits": forecast.passes,
        "spare": forecast.spare,
        "allocated": forecast.allocated,
        "reserved": forecast.reserved,
        "needed": forecast.needed,
        "graph_pool": forecast.pool,
        "margin": forecast.margin,
        "used": forecast.used,
        "expandable_segments": forecast.expandable,
        "shapes": {"source": forecast.shapes.source, "micro_batch": list(forecast.shapes.training[0].input_ids.shape)},
        "parameters": traced.parameters,
        "trainable": traced.trainable,
        "flops_per_token": traced.flops_per_token,
        "step": json_of_time(forecast),
        "notices": [*traced.plan.notices, *traced.notices],
        "ledger": {
            **{entry.kind: entry.bytes for entry in ledger.entries},
            **dict(forecast.outside),
            "fragmentation and cache": forecast.cached,
        },
        "phases": {phase.phase: phase.bytes for phase in ledger.phases},
        "peak_at": asdict(ledger.at),
        "largest": [{**asdict(h.block), "count": h.count, "total": h.bytes} for h in ledger.largest],
        "timeline": [asdict(moment) for moment in ledger.timeline],
    }
    if found is not None:
        result["levers"] = [_lever_json(one) for one in found]
    return result


def json_of_card(card: Card) -> dict[str, Any]:
    """A card, and how many of its kind the run has; sizes are bytes of each."""
    return {
        "name": card.name,
        "count": card.count,
        "memory": card.memory,
        "context": card.context,
        "nccl": card.nccl,
    }


def _lever_json(one: Measured | Refused) -> dict[str, Any]:
    lever = one.lever
    common = {"name": lever.name, "set": list(lever.overrides), "exact": lever.exact, "remark": lever.remark}
    if isinstance(one, Refused):
        return {**common, "refused": one.reason}
    return {
        **common,
        "saved_allocated": one.saved_allocated,
        "saved_needed": one.saved,
        "compute": one.compute,
        "fits": one.forecast.passes,
        "allocated": one.forecast.allocated,
        "reserved": one.forecast.reserved,
    }
