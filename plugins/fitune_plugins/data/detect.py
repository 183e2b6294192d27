"""Data stage `detect`: finds the format of the rows by the columns of the first, and says which it is."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from fitune import Conversation, DataContext, DataError, DataStage, NoOptions, Row, Stage, hookimpl
from fitune_plugins.data import formats
from fitune_plugins.data.turns import bad

COLUMNS = ("messages", "conversations", "instruction", "output", "prompt", "completion")
"""The columns that formats are told by."""

Read = Callable[[Row], Conversation]


def _messages(row: Row) -> Conversation:
    return formats.read_messages(formats.MessagesOptions(), row)


def _messages_as_conversations(row: Row) -> Conversation:
    return formats.read_messages(formats.MessagesOptions(messages="conversations"), row)


def _sharegpt(row: Row) -> Conversation:
    return formats.read_sharegpt(formats.ShareGptOptions(), row)


def _alpaca(row: Row) -> Conversation:
    return formats.read_alpaca(formats.AlpacaOptions(), row)


def _prompt_completion(row: Row) -> Conversation:
    return formats.read_prompt_completion(formats.PromptCompletionOptions(), row)


def _found(row: Row) -> tuple[str, Read]:
    """The format of a row, by its columns. Raises `DataError`."""
    values = row.values
    if "messages" in values:
        return "messages", _messages
    if "conversations" in values:
        talk = values["conversations"]
        first = talk[0] if isinstance(talk, list) and talk else {}
        if isinstance(first, Mapping) and "role" in first:
            return 'messages, in the column "conversations"', _messages_as_conversations
        return "sharegpt", _sharegpt
    if "instruction" in values and "output" in values:
        return "alpaca", _alpaca
    if "prompt" in values and "completion" in values:
        return "prompt-completion", _prompt_completion
    names = ", ".join(map(str, values)) or "none"
    raise bad(row.origin, f"the format cannot be told by its columns: {names}", _fix(values))


def _fix(values: Mapping[str, Any]) -> str:
    """What to do about columns that are of no known format."""
    if "text" in values:
        return 'To train on whole texts, add a [[data.stage]] with use = "plain-text" in place of "chat"'
    for name in values:
        for meant in difflib.get_close_matches(str(name), COLUMNS, n=1, cutoff=0.8):
            return f'Is "{name}" to be "{meant}"? Name a format and its columns in a [[data.stage]] before "chat"'
    return 'Name a format and its columns: [[data.stage]] use = "prompt-completion", prompt = ..., completion = ...'


def _make(options: NoOptions, context: DataContext) -> Stage:
    def detect(rows: Iterator[Row]) -> Iterator[Conversation]:
        for first in rows:
            try:
                name, read = _found(first)
            except DataError as error:
                context.reject(error)
                continue

            def counted(row: Row, read: Read = read, name: str = name) -> Conversation:
                found = read(row)
                context.count(f"rows read as {name}")
                return found

            yield from formats.conversations(counted, chain([first], rows), context)

    return detect


@hookimpl
def ft_data_stages() -> Iterable[DataStage[Any]]:
    """Offer the stage."""
    yield DataStage(
        name="detect",
        summary="Format: told by the first row's columns, and stated",
        options=NoOptions,
        takes="rows",
        gives="conversations",
        closes="gap",
        make=_make,
    )
