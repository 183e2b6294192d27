"""Data stage `detect`: finds the format of each file's rows by the columns of its first, and says which it is."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from fitune import Conversation, DataContext, DataStage, Row, Stage, hookimpl
from fitune_plugins.data import formats
from fitune_plugins.data.formats import FormatOptions
from fitune_plugins.data.row import bad, unpacked

COLUMNS = ("messages", "conversations", "instruction", "output", "prompt", "completion")
"""The columns that formats are told by."""

QUESTIONS = ("prompt", "question", "query", "instruction", "problem", "input")
"""Columns in which public data sets keep what is asked."""

ANSWERS = ("completion", "response", "answer", "output", "solution")
"""Columns in which they keep the answer."""

Read = Callable[[Row], Conversation]


def _found(options: FormatOptions, row: Row) -> tuple[str, Read]:
    """The format of a row, by its columns. Raises `DataError`."""
    values, obeyed = row.values, options.loss_keys
    if "messages" in values:
        messages = formats.MessagesOptions(loss_keys=obeyed)
        return "messages", lambda row: formats.read_messages(messages, row)
    _must_not_be_judged(row)
    if "conversations" in values:
        if _has_roles(row):
            named = formats.MessagesOptions(messages="conversations", loss_keys=obeyed)
            return 'messages, in the column "conversations"', lambda row: formats.read_messages(named, row)
        sharegpt = formats.ShareGptOptions(loss_keys=obeyed)
        return "sharegpt", lambda row: formats.read_sharegpt(sharegpt, row)
    if "instruction" in values and "output" in values:
        alpaca = formats.AlpacaOptions(loss_keys=obeyed)
        return "alpaca", lambda row: formats.read_alpaca(alpaca, row)
    if "prompt" in values and "completion" in values:
        prompt_completion = formats.PromptCompletionOptions(loss_keys=obeyed)
        return "prompt-completion", lambda row: formats.read_prompt_completion(prompt_completion, row)
    names = ", ".join(map(str, values)) or "none"
    raise bad(row.origin, f"the format cannot be told by its columns: {names}", _fix(values))


def _has_roles(row: Row) -> bool:
    """Whether the messages in the column "conversations" are of OpenAI's form."""
    talk = unpacked(row.values["conversations"], row.origin, 'column "conversations"', "a list of messages")
    first = talk[0] if isinstance(talk, list) and talk else {}
    return isinstance(first, Mapping) and "role" in first


def _must_not_be_judged(row: Row) -> None:
    """Refuse rows that say which answers are good and which are bad: not all of them are to be learned."""
    values = row.values
    if "chosen" in values and "rejected" in values and not ("completion" in values or "output" in values):
        what = "preferences (chosen, rejected), but the objective learns from every answer"
        fix = (
            'Compare them ([objective] use = "dpo"), or train on the chosen ones alone: name a format and its columns '
        )
        fix += 'in a [[data.stage]] before "chat"'
        raise bad(row.origin, what, f"{fix}{_of_chosen(values)}")
    if "prompt" in values and "completion" in values and isinstance(values.get("label"), bool):
        what = 'judged answers ("label" says whether an answer is good), but the objective learns from every answer'
        fix = 'Use [objective] use = "kto", or leave out the bad ones, and name the format: [[data.stage]] use = '
        fix += '"prompt-completion"'
        raise bad(row.origin, what, fix)


def _of_chosen(values: Mapping[str, Any]) -> str:
    """How the stage is written that reads the chosen answers, where the columns tell."""
    if isinstance(values["chosen"], list):
        return ': use = "messages", messages = "chosen"'
    return ': use = "prompt-completion", completion = "chosen"' if "prompt" in values else ""


def _fix(values: Mapping[str, Any]) -> str:
    """What to do about columns that are of no known format."""
    asked = next((name for name in QUESTIONS if name in values), None)
    answer = next((name for name in ANSWERS if name in values and name != asked), None)
    if asked is not None and answer is not None:
        return f"Name the format and its columns: [[data.stage]] {_stage(asked, answer, values)}"
    if "text" in values:
        return 'To train on whole texts, add a [[data.stage]] with use = "plain-text" in place of "chat"'
    for name in map(str, values):
        for meant in difflib.get_close_matches(name, COLUMNS, n=1, cutoff=0.8):
            if name != meant:
                return f'Is "{name}" to be "{meant}"? Name a format and its columns in a [[data.stage]] before "chat"'
    return 'Name a format and its columns: [[data.stage]] use = "prompt-completion", prompt = ..., completion = ...'


def _stage(asked: str, answer: str, values: Mapping[str, Any]) -> str:
    """The table of a stage that reads these columns."""
    if asked == "instruction":
        named = {"input": "context" if "context" in values else "input", "output": answer}
        parts = ['use = "alpaca"', *(f'{key} = "{name}"' for key, name in named.items() if key != name)]
    else:
        named = {"prompt": asked, "completion": answer}
        parts = ['use = "prompt-completion"', *(f'{key} = "{name}"' for key, name in named.items() if key != name)]
    return ", ".join(parts)


def _make(options: FormatOptions, context: DataContext) -> Stage:
    def detect(rows: Iterator[Row]) -> Iterator[Conversation]:
        found: dict[str, tuple[str, Read]] = {}

        def read(row: Row) -> Conversation:
            if row.origin.file not in found:
                found[row.origin.file] = _found(options, row)
            name, of_file = found[row.origin.file]
            conversation = of_file(row)
            context.count(f"rows read as {name}")
            return conversation

        return formats.conversations(read, rows, context)

    return detect


@hookimpl
def ft_data_stages() -> Iterable[DataStage[Any]]:
    """Offer the stage."""
    yield DataStage(
        name="detect",
        summary="Format: told by the columns of each file's first row, and stated",
        options=FormatOptions,
        takes="rows",
        gives="conversations",
        closes="gap",
        make=_make,
    )
