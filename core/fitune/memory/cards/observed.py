"""What runs on this machine have shown of its cards: kept, so that the next forecast knows them better.

A file of JSON in the user's cache directory holds, by card and version of torch, the least context that was seen (other
processes' use of the card can only add to it) and the most by which a run reserved more than its forecast.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from fitune.data.cache import cache_directory
from fitune.memory.cards.cards import Card
from fitune.runs.atomic import write_file

PLAUSIBLE = (2**28, 3 * 2**29)
"""Bytes between which a context can be one: 256 MiB to 1.5 GiB. More is another process' use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What is known of a card with one version of torch."""

    runs: int = 0
    context: int | None = None
    """Bytes; the least that was seen."""
    over: float = 0.0
    """The most by which a run reserved more than was forecast, as a share of the forecast."""


def file() -> Path:
    """Where it is kept."""
    return cache_directory().parent / "cards.json" if "FT_CACHE" not in os.environ else cache_directory() / "cards.json"


def observed(card: str) -> Observed:
    """What is known of a card, by torch's name of it."""
    entry = _read(file()).get(_key(card))
    return Observed() if entry is None else Observed(**entry)


def note(card: str, *, context: int, reserved: int, forecast: int) -> Observed:
    """Add a run: its context, and what it reserved beside what was forecast. Gives what is known now."""
    path = file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        entries = _read(path)
        before = Observed(**entries.get(_key(card), {}))
        known = [size for size in (before.context, context) if size is not None and _is_plausible(size)]
        after = Observed(
            runs=before.runs + 1,
            context=min(known, default=None),
            over=max(before.over, reserved / forecast - 1),
        )
        write_file(path, json.dumps({**entries, _key(card): asdict(after)}, indent=2) + "\n")
    return after


def better_known(card: Card) -> Card:
    """The card with the context that runs on this machine have shown, if any has."""
    known = observed(card.name)
    if known.context is None:
        return card
    source = f"measured on this machine, the least of {known.runs} run(s)"
    return replace(card, context=known.context, context_source=source)


def _is_plausible(context: int) -> bool:
    low, high = PLAUSIBLE
    return low <= context <= high


def _key(card: str) -> str:
    import importlib.metadata

    return f"{card}, torch {importlib.metadata.version('torch')}"


def _read(path: Path) -> Mapping[str, Any]:
    """The entries of the file; one that is damaged counts as empty, since all in it can be seen again."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return entries if isinstance(entries, dict) else {}
