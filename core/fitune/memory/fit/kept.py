"""What a search has chosen, kept in the user's cache: the next start of the same run does not search again.

The key is a digest of all that a choice depends on: the recipe, the model's configuration, the rows, the card and its
speeds, the code and the versions of what is installed. What is kept is names and options, and the forecast's figures
for a run, which takes them as they are: under the same key a trace would give the same. `kept` composes and traces it
in full depth as the search does at its end, for who asks for more than figures, and takes only what still fits.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitune._version import __version__
from fitune.data.cache import cache_directory, locked
from fitune.data.cache_key import version_of
from fitune.memory.cards.cards import Card
from fitune.memory.cards.rates import origin_of
from fitune.memory.fit.result import Considered, Fitted
from fitune.memory.fit.tracing import Tracing, Trial
from fitune.memory.shapes import Shapes
from fitune.plugin.code import code_of, place_of
from fitune.plugin.digest import digest_of
from fitune.plugin.events import MemoryForecast
from fitune.plugin.recipe import Recipe
from fitune.plugin.registry import Registry
from fitune.runs.atomic import write_file

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from fitune.plugin.dataflow import Batch

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")
"""Packages whose version may change what a composition takes."""

AS_BEFORE = "chosen by an earlier search for the same run, which is kept; ft plan --fit searches anew"

LARGEST = 2**20
"""Bytes of a file, at most."""


def key_of_fit(recipe: Recipe, registry: Registry, config: PreTrainedConfig, shapes: Shapes, card: Card) -> str:
    """A digest of all that a choice depends on."""
    table = recipe.to_toml()
    parts = [
        [__version__, code_of(str(Path(__file__).parents[2])), [version_of(name) for name in LIBRARIES]],
        [[one.kind, one.record.name, _code(one.plugin)] for one in registry.provided],
        [digest_of(file) for file in recipe.general.plugins],
        [table[name] for name in ("model", "adapter", "memory", "train", "eval") if name in table],
        [recipe.general.deterministic, [use.table() for use in recipe.stages]],
        config.to_json_string(use_diff=False),
        [[_sizes(batch) for batch in shapes.training], _sizes(shapes.evaluation), shapes.prompt],
        [asdict(card), repr(origin_of(card))],
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


@contextlib.contextmanager
def one_searches(key: str) -> Iterator[None]:
    """Be the one process that searches for this choice, and keeps it; none waits where nothing can be kept."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            stack.enter_context(locked(_file(key).parent, key))
        yield


def keep(key: str, chosen: Considered, others: Sequence[Considered]) -> None:
    """Keep a choice; where the cache cannot be written, the next start searches again."""
    path = _file(key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps({"chosen": asdict(chosen), "others": [asdict(one) for one in others]}) + "\n")
    except (OSError, TypeError, ValueError):
        return


def keep_told(key: str, told: MemoryForecast) -> None:
    """Keep the figures of the choice that is kept under this key."""
    if table := _table(key):
        with contextlib.suppress(OSError, TypeError, ValueError):
            write_file(_file(key), json.dumps({**table, "told": asdict(told)}) + "\n")


def kept_told(key: str) -> tuple[Considered, MemoryForecast] | None:
    """A choice that was kept with its figures; None where there is none."""
    table = _table(key)
    entry, values = _entry(table), table.get("told")
    if entry is None or not isinstance(values, dict):
        return None
    try:
        ledger = tuple((str(what), int(size)) for what, size in values["ledger"])
        told = MemoryForecast(**{**values, "ledger": ledger})
    except (TypeError, ValueError, KeyError):
        return None
    return (entry[0], told) if told.fits and set(values) == {one.name for one in fields(told)} else None


def kept(key: str, recipe: Recipe, tracing: Tracing, card: Card, names: Collection[str]) -> Fitted | None:
    """What was chosen before, traced anew; None where there is nothing, it does not fit any more, or it has a strategy
    that is none of these names.
    """
    entry = _entry(_table(key))
    if entry is None:
        return None
    chosen, others = entry
    if not {str(table.get("use")) for table in chosen.tables} <= set(names):
        return None
    trial = Trial(
        tables=chosen.tables,
        micro_batch=chosen.micro_batch,
        accumulation=None if recipe.train.batch_tokens is None else chosen.accumulation,
    )
    found = tracing.whole(trial)
    if found is None:
        return None
    made, forecast, seen = found
    if not forecast.passes or seen.reserved > card.usable - forecast.margin:
        return None
    chosen = replace(chosen, allocated=int(seen.allocated), reserved=int(seen.reserved), seconds=seen.seconds)
    return Fitted(recipe=made, forecast=forecast, chosen=chosen, others=others, card=card, notes=(AS_BEFORE,))


def _file(key: str) -> Path:
    return cache_directory() / "fits" / f"{key}.json"


def _entry(table: Mapping[str, Any]) -> tuple[Considered, tuple[Considered, ...]] | None:
    """What was chosen, and the others; None of a table that is empty, or of another form."""
    try:
        return _considered(table["chosen"]), tuple(_considered(one) for one in table["others"])
    except (TypeError, KeyError, AttributeError):
        return None


def _table(key: str) -> dict[str, Any]:
    """What is kept under a key; nothing of a file that is missing, too large or no table."""
    path = _file(key)
    try:
        if path.stat().st_size > LARGEST:
            return {}
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return table if isinstance(table, dict) else {}


def _considered(values: dict[str, Any]) -> Considered:
    tables = tuple({str(key): value for key, value in table.items()} for table in values["tables"])
    return Considered(**{**values, "tables": tables})


def _sizes(batch: Batch | None) -> list[Any] | None:
    return None if batch is None else [list(batch.input_ids.shape), batch.targets, batch.tokens, list(batch.lengths)]


def _code(plugin: str) -> str | None:
    """Of the package, or file, that a plugin comes from."""
    place = place_of(plugin)
    return None if place is None else code_of(place)
