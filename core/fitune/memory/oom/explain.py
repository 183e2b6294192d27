"""Why a run ran out of memory: the request that failed, what filled the card by then, and what would make it fit.

The recipe's run is traced, and its log replayed on the memory that the message says there was.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fitune.errors import FtError, RunError
from fitune.memory.cards.cards import Card, find_card, known_cards
from fitune.memory.fast import with_fast
from fitune.memory.forecast import Forecast, forecast
from fitune.memory.ledger import Entry, Holding, held_at
from fitune.memory.levers import Plant, Remedies, as_file, remedies
from fitune.memory.oom.failure import Failure, Sighting, askers, run_out, sighting
from fitune.memory.oom.message import OutOfMemoryMessage
from fitune.memory.shapes import of_recipe
from fitune.memory.strategies import growing
from fitune.memory.trace.twins import twins_of
from fitune.plugin.recipe import Recipe
from fitune.plugin.units import MIB, gib
from fitune.recipe.reader import read_recipe

if TYPE_CHECKING:
    from fitune.plugin.registry import Registry


NEAR = 0.03
"""A card is told by its total memory, which differs by so large a share between drivers."""

CONTEXTS = 256 * MIB
"""Bytes by which a context that the message does not tell may differ from the one that is assumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What the caching allocator could have of the card at most, in bytes."""

    capacity: int
    context: int
    """What this process takes outside of it."""
    context_known: bool
    """Whether the message tells the context, rather than the table of cards."""
    others: int
    """What other processes use."""
    spread: int
    """How far off the capacity, or the forecast, may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """Another run than the recipe's, which asks for just what the message says."""

    override: str
    """What makes it so, as `--set` takes it."""
    meaning: str
    forecast: Forecast
    sighting: Sighting


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Everything that can be said of one message. Only what the message says is measured; all else is forecast."""

    message: OutOfMemoryMessage
    card: Card
    """Less what other processes use of it."""
    named: bool
    """Whether a user named the card; else it is told by its memory."""
    room: Room
    added: tuple[str, ...]
    """What `[memory] fast` adds to the recipe, in lines; it counts as the recipe's own below."""
    forecast: Forecast
    """Of the recipe as it is."""
    failure: Failure | None
    """Where the recipe as it is runs out with this room; None where it gets through."""
    sighting: Sighting | None
    """Where it asks for what the message says, with about this room."""
    variants: tuple[Variant, ...]
    """Asked only where there is no such place."""
    entries: tuple[Entry, ...]
    """What the memory was for when the request failed; or at the recipe's peak."""
    largest: tuple[Holding, ...]
    growing: str
    """Name of a strategy with which the allocator's segments grow; empty if no plugin has one."""
    remedies: Remedies

    @property
    def found(self) -> Failure | None:
        """The request that failed, by the best that is known."""
        return self.sighting.failure if self.sighting else self.failure

    @property
    def missing(self) -> int:
        """Bytes that the recipe lacks to get through, whatever it asked for first; negative where they are spare."""
        return self.forecast.needed - self.room.capacity


def explain(
    recipe: Recipe,
    registry: Registry,
    message: OutOfMemoryMessage,
    *,
    overrides: Sequence[str] = (),
    gpu: str | None = None,
) -> Explanation:
    """Explain a message of a run of this recipe, which was read with `overrides`, and what `[memory] fast` adds to it.

    Raises `RunError` where the card cannot be told, `RecipeError` for a card that is not known, and `ModelError` where
    the run cannot be traced.
    """
    known = card_of(message, gpu)
    room = _room(message, known)
    card = dataclasses.replace(known, memory=room.capacity + room.context, context=room.context)
    asked, added = recipe, with_fast(recipe, registry, card)
    with contextlib.ExitStack() as stack:
        if added.recipe is not asked:  # its changes are those of a recipe that can be read
            recipe, overrides = as_file(added.recipe, registry, stack), ()
        base = forecast(recipe, of_recipe(recipe), card, twins_of(registry))
        plant = Plant(
            recipe=recipe,
            registry=registry,
            overrides=overrides,
            shape=of_recipe,
            base=base,
            twins=twins_of(registry),
        )
        found = _explained(plant, message, room, added=added.lines, named=gpu is not None)
    return found if recipe is asked or found.sighting else _or_as_written(found, asked, registry)


def _explained(
    plant: Plant, message: OutOfMemoryMessage, room: Room, *, added: tuple[str, ...], named: bool
) -> Explanation:
    """What the forecast of the recipe says of the message."""
    base = plant.base
    if room.context_known:
        room = dataclasses.replace(room, spread=max(base.margin, room.spread))
    log, expandable = base.trace.log, base.expandable
    seen = sighting(log, message, room.capacity, room.spread, expandable=expandable)
    failure = run_out(log, room.capacity, expandable=expandable)
    at = seen.failure if seen else failure
    entries, largest = held_at(log, at.event - 1) if at else (base.ledger.entries, base.ledger.largest)
    grows = growing(plant.registry)
    return Explanation(
        message=message,
        card=base.card,
        named=named,
        room=room,
        added=added,
        forecast=base,
        failure=failure,
        sighting=seen,
        variants=() if seen else tuple(_variants(plant, message, room)),
        entries=entries,
        largest=largest,
        growing=grows.name if grows else "",
        remedies=remedies(plant) if not base.passes else Remedies(),
    )


def _or_as_written(found: Explanation, asked: Recipe, registry: Registry) -> Explanation:
    """Also with the run of the recipe and nothing else, where that fails just as the message says."""
    base = forecast(asked, of_recipe(asked), found.card, twins_of(registry))
    log, room = base.trace.log, found.room
    seen = sighting(log, found.message, room.capacity, room.spread, expandable=base.expandable)
    if seen is None:
        return found
    meaning = "the recipe's own strategies alone, as fitune ran it before 0.2, and other programs do"
    plain = Variant(override="memory.fast=false", meaning=meaning, forecast=base, sighting=seen)
    return dataclasses.replace(found, variants=(plain, *found.variants))


def card_of(message: OutOfMemoryMessage, gpu: str | None) -> Card:
    """The card of this name, with the memory that the message says; or the card that has just about that memory."""
    if gpu is not None:
        card = find_card(gpu)
    elif message.total is None:
        raise RunError("the message does not say how much memory the card has. Name the card: --gpu a10g")
    else:
        total = message.total.bytes
        card = min(known_cards(), key=lambda known: abs(known.memory - total))
        if abs(card.memory - total) > NEAR * total:
            raise RunError(
                f"no known card has {gib(total)} in all; the nearest is the {card.name} with "
                f"{gib(card.memory)}. Name the card, or a .toml file that describes it: --gpu NAME"
            )
    return card if message.total is None else dataclasses.replace(card, memory=message.total.bytes)


def _room(message: OutOfMemoryMessage, card: Card) -> Room:
    """What the allocator could have: what it had and what was free, where the message says both."""
    others = sum(other.bytes for other in message.others)
    if not others and message.total and message.free and message.in_use:
        rest = message.total - message.free - message.in_use
        others = rest.bytes if rest.bytes > rest.error else 0
    reserved, free = message.reserved, message.free
    context, known = card.context, False
    if reserved and message.in_use and message.in_use.bytes > reserved.bytes:
        context, known = (message.in_use - reserved).bytes, True
    if reserved and free:
        capacity, spread = (reserved + free).bytes, (reserved + free).error
        known = True
    else:
        capacity, spread = card.memory - context - others, CONTEXTS
    if message.allowed is not None:
        capacity, known = min(capacity, message.allowed.bytes), True
        spread = message.allowed.error
    if capacity <= 0:
        raise RunError("the figures leave no memory for the run: in use is more than the card has in all. Check them")
    return Room(capacity=capacity, context=context, context_known=known, others=others, spread=spread)


def _variants(plant: Plant, message: OutOfMemoryMessage, room: Room) -> Iterator[Variant]:
    """Runs that differ from the recipe in what is easily mistaken, and fail just as the message says."""
    log = plant.base.trace.log
    for override, meaning, times in _mistakes(plant.recipe):
        if not askers(log, message.asked, whole_segment=message.whole_segment, times=times):
            continue
        try:
            recipe = read_recipe(plant.recipe.path, plant.registry, (*plant.overrides, override))
            found = forecast(recipe, plant.shape(recipe), plant.base.card, plant.twins)
        except FtError:  # not every recipe can take every change
            continue
        seen = sighting(found.trace.log, message, room.capacity, room.spread, expandable=found.expandable)
        if seen is not None:
            yield Variant(override=override, meaning=meaning, forecast=found, sighting=seen)


def _mistakes(recipe: Recipe) -> Iterator[tuple[str, str, int]]:
    """(override, what it means, by how much it multiplies a tensor's size)"""
    if getattr(recipe.model.options, "dtype", None) in ("bfloat16", "float16"):
        yield "model.dtype=float32", "weights in float32, what transformers 4 loads unless told otherwise", 2
    if getattr(recipe.adapter.options, "dtype", None) == "base":
        yield "adapter.dtype=float32", "adapters that compute in float32, which is peft's default", 2
    for times in (2, 4, 8):
        rows = recipe.train.micro_batch * times
        yield (
            f"train.micro_batch={rows}",
            f"{times} times the tokens in a micro-batch, as more or as longer rows",
            times,
        )
