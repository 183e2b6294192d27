"""What a fit has chosen, as a person reads it and as a program does. Every number is forecast, none measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fitune.memory.fit.result import Considered, Fitted
from fitune.memory.report import json_of_card, size, verdict
from fitune.plugin.options import describe, to_table, toml_text
from fitune.plugin.recipe import Recipe, Use
from fitune.plugin.records import MemoryStrategy

ROWS = 10
"""Most of the other compositions that are listed; a program gets all."""


def lines(fitted: Fitted, asked: Recipe) -> Iterator[str]:
    """What was chosen for the recipe that was asked about, and what else there is."""
    yield from verdict(fitted.forecast, asked.general.name)
    for note in fitted.notes:
        yield f"  note       {note}"
    yield ""
    yield from _chosen(fitted, asked)
    yield ""
    yield from _others(fitted)


def in_short(fitted: Fitted) -> str:
    """What was chosen, in a line."""
    named = ", ".join(worded(use.record.name, _settings(use)) for use in fitted.recipe.strategies) or "no strategy"
    return f"[memory] fit: planned is what it chooses for {fitted.card.title}, {size(fitted.card.memory)}: {named}"


def json_of_fit(fitted: Fitted) -> dict[str, Any]:
    """The same for a program; sizes are bytes, `seconds` those of the time model, to be compared with each other."""
    return {
        "card": json_of_card(fitted.card),
        "strategies": [use.table() for use in fitted.recipe.strategies],
        "chosen": _json(fitted.chosen, fitted.chosen),
        "others": [_json(other, fitted.chosen) for other in fitted.others],
        "notes": list(fitted.notes),
    }


def differences(other: Considered, chosen: Considered) -> str:
    """What another composition does otherwise than the chosen one."""
    theirs, ours = ({str(t["use"]): options_of(t) for t in one.tables} for one in (other, chosen))
    said = [f"with {worded(name, options)}" for name, options in theirs.items() if name not in ours]
    changed = {name: options for name, options in theirs.items() if name in ours and options != ours[name]}
    said += [
        worded(name, options) if options else f"{name}, its settings left out" for name, options in changed.items()
    ]
    said += [f"without {name}" for name in ours if name not in theirs]
    if (other.micro_batch, other.accumulation) != (chosen.micro_batch, chosen.accumulation):
        said.append(_cut(other.micro_batch, other.accumulation))
    return "; ".join(said) or "the same strategies"


def _chosen(fitted: Fitted, asked: Recipe) -> Iterator[str]:
    named = {use.record.name for use in asked.strategies}
    strategies = fitted.recipe.strategies
    yield "Chosen: the fastest composition that fits, by forecast"
    for use in strategies:
        mark = " (named by the recipe)" if use.record.name in named else ""
        yield f"  {worded(use.record.name, _settings(use))}: {_summary(use)}{mark}"
    if not strategies:
        yield "  no memory strategy"
    yield f"  {_cut(fitted.chosen.micro_batch, fitted.chosen.accumulation)}"
    spare = fitted.card.usable - fitted.forecast.margin - fitted.forecast.reserved
    yield f"  to spare {size(spare)} with nothing given back, forecast"
    yield f"  time of a step {_pace(fitted)}"


def _cut(micro_batch: int, accumulation: int) -> str:
    return f"micro_batch {micro_batch}, {accumulation} to a step"


def _pace(fitted: Fitted) -> str:
    fastest = min((fitted.chosen, *fitted.others), key=lambda one: one.seconds)
    if fastest is fitted.chosen or fastest.seconds <= 0:
        return "1.00, estimated: nothing that was looked at is faster"
    fits = "fits too, but changes numbers" if fastest.fits else "does not fit"
    times = fitted.chosen.seconds / fastest.seconds
    return f"{times:.2f} times that of the fastest that was looked at, which {fits}; estimated"


def _others(fitted: Fitted) -> Iterator[str]:
    if not fitted.others:
        yield "Nothing else was looked at"
        return
    yield "Looked at beside it: time of a step and memory as forecast, and what is otherwise"
    yield f"  {'time':>5} {'reserved':>12}  {'':<12} {'':<9} otherwise"
    for one in fitted.others[:ROWS]:
        time = f"{one.seconds / fitted.chosen.seconds:.2f}" if fitted.chosen.seconds > 0 else "?"
        fits = "fits" if one.fits else "does not fit"
        how = "traced" if one.confirmed else "estimated"
        yield f"  {time:>5} {size(one.reserved):>12}  {fits:<12} {how:<9} {differences(one, fitted.chosen)}"
    if len(fitted.others) > ROWS:
        yield f"  and {len(fitted.others) - ROWS} more: --json has all"


def _json(one: Considered, chosen: Considered) -> dict[str, Any]:
    return {
        "strategies": [dict(table) for table in one.tables],
        "micro_batch": one.micro_batch,
        "accumulation": one.accumulation,
        "seconds": one.seconds,
        "relative_time": one.seconds / chosen.seconds if chosen.seconds > 0 else None,
        "allocated": one.allocated,
        "reserved": one.reserved,
        "margin": one.margin,
        "fits": one.fits,
        "traced": one.confirmed,
    }


def options_of(table: Mapping[str, object]) -> dict[str, object]:
    """What a strategy's table says beside its name."""
    return {key: value for key, value in table.items() if key != "use"}


def _settings(use: Use[MemoryStrategy[Any]]) -> dict[str, object]:
    """The options of a strategy that are not the default."""
    plain = {option.name: option.default for option in describe(use.record.options)}
    return {key: value for key, value in to_table(use.options).items() if toml_text(value) != plain[key]}


def worded(name: str, options: Mapping[str, object]) -> str:
    """A strategy with these options, in a few words."""
    said: Iterable[str] = (f"{key} = {toml_text(value)}" for key, value in options.items())
    return f"{name} ({', '.join(said)})" if options else name


def _summary(use: Use[MemoryStrategy[Any]]) -> str:
    summary = use.record.summary
    return summary[:1].lower() + summary[1:] if summary[1:2].islower() else summary
