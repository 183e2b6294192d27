"""What data stages give, looked at item by item as it comes: a wrong thing is told of the stage that gave it, and not
of the one that trips over it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fitune.errors import PluginError
from fitune.plugin.contract import blame, wrong_gift
from fitune.plugin.dataflow import (
    Batch,
    Conversation,
    DataContext,
    Document,
    Example,
    Flow,
    Origin,
    Preference,
    Row,
    Stage,
)
from fitune.plugin.recipe import Use
from fitune.plugin.records import DataStage

KINDS: Mapping[Flow, type[Any]] = {
    "rows": Row,
    "conversations": Conversation,
    "preferences": Preference,
    "documents": Document,
    "examples": Example,
    "batches": Batch,
}
"""What each stream is of."""


def made(use: Use[DataStage[Any]], context: DataContext) -> Stage:
    """A stage, each of whose items is what its record says that it gives. Raises `PluginError` where it cannot be made,
    and later, as its stream is read, where it gives something else.
    """
    name = use.record.name
    with blame(title(name)):
        stage: object = use.record.make(use.options, context)
    if not callable(stage):
        raise wrong_gift(f"{title(name)}: make", stage, "a function of an iterator")
    return _held(stage, use.record)


def title(name: str) -> str:
    """What errors call a stage."""
    return f'data stage "{name}"'


def _held(stage: Callable[..., Any], record: DataStage[Any]) -> Stage:
    kind = KINDS.get(record.gives, object)

    def held(stream: Iterator[Any]) -> Iterator[Any]:
        with blame(title(record.name)):
            found: Any = stage(stream)
            if not hasattr(found, "__iter__"):
                raise wrong_gift(title(record.name), found, "an iterator")
            for item in found:
                if not isinstance(item, kind):
                    wanted = f'a fitune.{kind.__name__}: it says that it gives "{record.gives}"'
                    raise wrong_gift(title(record.name), item, wanted)
                if kind is Row:
                    _must_be_row(item, record.name)
                yield item

    return held


def _must_be_row(row: Row, name: str) -> None:
    if not isinstance(row.origin, Origin):
        raise PluginError(f"{title(name)} gave a row whose origin is {_words(row.origin)}, and must be an Origin")
    if not isinstance(row.values, Mapping):
        raise PluginError(
            f"{title(name)} gave a row ({row.origin}) whose values are {_words(row.values)}, and must be a mapping"
        )


def _words(found: object) -> str:
    return "None" if found is None else f"a {type(found).__name__}"
