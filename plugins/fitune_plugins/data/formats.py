"""Data stages `messages`, `sharegpt`, `alpaca` and `prompt-completion`: rows of a known form to conversations.

A format of one's own is such a stage: it takes rows and gives conversations.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from fitune import Conversation, DataContext, DataError, DataStage, Row, Stage, hookimpl, nearest
from fitune_plugins.data.turns import Turn, bad, column, conversation, shown, text, tools, turns

O = TypeVar("O")  # noqa: E741 - options, as in every provider's docstring

Read = Callable[[O, Row], Conversation]


@dataclass(frozen=True, slots=True, kw_only=True)
class MessagesOptions:
    """Options of the stage `messages`."""

    messages: str = "messages"
    """Column with a list of {role, content} messages."""
    tools: str = "tools"
    """Column with the tools that the assistant may call, as a list or as JSON; rows without it have none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareGptOptions:
    """Options of the stage `sharegpt`."""

    conversations: str = "conversations"
    """Column with a list of {from, value} messages."""
    role: str = "from"
    """Key of who speaks."""
    value: str = "value"
    """Key of what is said."""
    system: str = "system"
    """Column with a system message; rows without it have none."""
    tools: str = "tools"
    """Column with the tools that the assistant may call, as a list or as JSON; rows without it have none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlpacaOptions:
    """Options of the stage `alpaca`."""

    instruction: str = "instruction"
    """Column with the task."""
    input: str = "input"
    """Column with what the task is about, put on a line of its own below it; may be missing or empty."""
    output: str = "output"
    """Column with the answer."""
    system: str = "system"
    """Column with a system message; rows without it have none."""
    history: str = "history"
    """Column with earlier [instruction, output] pairs; rows without it have none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptCompletionOptions:
    """Options of the stage `prompt-completion`."""

    prompt: str = "prompt"
    """Column with the question: a text, or a list of messages."""
    completion: str = "completion"
    """Column with the answer: a text, or a list of messages."""
    system: str = "system"
    """Column with a system message; rows without it have none."""
    tools: str = "tools"
    """Column with the tools that the assistant may call, as a list or as JSON; rows without it have none."""


SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
    "tool": "tool",
}
"""Who speaks in ShareGPT data, and the role that it is."""


def read_messages(options: MessagesOptions, row: Row) -> Conversation:
    """A row of OpenAI's form."""
    found = turns(column(row, options.messages, "messages"), row.origin, f'column "{options.messages}"')
    return conversation(found, row, _tools(row, options.tools))


def read_sharegpt(options: ShareGptOptions, row: Row) -> Conversation:
    """A row of ShareGPT's form."""
    value = column(row, options.conversations, "conversations")
    if not isinstance(value, list) or not value:
        wanted = f'[{{"{options.role}": "human", "{options.value}": "..."}}, ...]'
        raise bad(row.origin, f'column "{options.conversations}" is not a list of messages', f"It takes: {wanted}")
    found = [_spoken(options, item, row, number) for number, item in enumerate(value, 1)]
    return conversation([*_system(row, options.system), *found], row, _tools(row, options.tools))


def _spoken(options: ShareGptOptions, item: Any, row: Row, number: int) -> Turn:
    if not isinstance(item, dict) or not isinstance(item.get(options.role), str):
        has = f"It has: {', '.join(map(str, item))}" if isinstance(item, dict) and item else ""
        what = f'message {number} is not an object with "{options.role}" and "{options.value}"'
        raise bad(row.origin, what, has)
    speaker = item[options.role]
    if speaker not in SPEAKERS:
        raise bad(row.origin, f'message {number} is from "{speaker}"', nearest(speaker, SPEAKERS))
    said = text(item.get(options.value), row.origin, f'message {number} ({speaker}): "{options.value}"')
    if speaker != "function_call":
        return {"role": SPEAKERS[speaker], "content": said}
    try:
        calls = json.loads(said)
    except ValueError as error:
        what = f"message {number} (function_call) is not JSON: {shown(said)}"
        raise bad(row.origin, what, 'Write {"name": "...", "arguments": {}}') from error
    called = calls if isinstance(calls, list) else [calls]
    return turns([{"role": "assistant", "tool_calls": called}], row.origin, f"message {number}")[0]


def read_alpaca(options: AlpacaOptions, row: Row) -> Conversation:
    """A row of Alpaca's form."""
    asked = _column_text(row, options.instruction, "instruction")
    about = row.values.get(options.input)
    if about:
        asked += "\n" + text(about, row.origin, f'column "{options.input}"')
    found = _system(row, options.system)
    for pair in row.values.get(options.history) or ():
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            what = f'column "{options.history}" has {shown(pair)}'
            raise bad(row.origin, what, "It takes pairs: [instruction, output]")
        before, answer = (text(part, row.origin, f'column "{options.history}": a part of it') for part in pair)
        found += _asked_and_answered(before, answer)
    return conversation([*found, *_asked_and_answered(asked, _column_text(row, options.output, "output"))], row)


def read_prompt_completion(options: PromptCompletionOptions, row: Row) -> Conversation:
    """A row of a question and the answer to it."""
    asked, answer = column(row, options.prompt, "prompt"), column(row, options.completion, "completion")
    found = [*_said(asked, "user", row, options.prompt), *_said(answer, "assistant", row, options.completion)]
    return conversation([*_system(row, options.system), *found], row, _tools(row, options.tools))


def _said(value: Any, role: str, row: Row, name: str) -> list[Turn]:
    if isinstance(value, list):
        return turns(value, row.origin, f'column "{name}"')
    return [{"role": role, "content": text(value, row.origin, f'column "{name}"')}]


def _asked_and_answered(asked: str, answer: str) -> list[Turn]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def _column_text(row: Row, name: str, option: str) -> str:
    return text(column(row, name, option), row.origin, f'column "{name}"')


def _system(row: Row, name: str) -> list[Turn]:
    value = row.values.get(name)
    return [{"role": "system", "content": text(value, row.origin, f'column "{name}"')}] if value else []


def _tools(row: Row, name: str) -> tuple[Any, ...]:
    value = row.values.get(name)
    return tools(value, row.origin, f'column "{name}"') if value else ()


def conversations(
    read: Callable[[Row], Conversation], rows: Iterator[Row], context: DataContext
) -> Iterator[Conversation]:
    """The rows read, each by itself: a bad one stops the run or is counted, as the recipe says."""
    for row in rows:
        try:
            found = read(row)
        except DataError as error:
            context.reject(error)
            continue
        yield found


def _format(name: str, summary: str, options: type[O], read: Read[O]) -> DataStage[O]:
    def make(chosen: O, context: DataContext) -> Stage:
        return lambda rows: conversations(partial(read, chosen), rows, context)

    return DataStage(name=name, summary=summary, options=options, takes="rows", gives="conversations", make=make)


@hookimpl
def ft_data_stages() -> Iterable[DataStage[Any]]:
    """Offer the stages."""
    yield _format("messages", "Format: a list of {role, content} messages (OpenAI)", MessagesOptions, read_messages)
    yield _format("sharegpt", "Format: a list of {from, value} messages (ShareGPT)", ShareGptOptions, read_sharegpt)
    yield _format("alpaca", "Format: instruction, input and output (Alpaca)", AlpacaOptions, read_alpaca)
    yield _format(
        "prompt-completion",
        "Format: a question and the answer to it, as texts or lists of messages",
        PromptCompletionOptions,
        read_prompt_completion,
    )
