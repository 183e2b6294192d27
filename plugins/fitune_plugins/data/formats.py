"""Data stages `messages`, `sharegpt`, `alpaca` and `prompt-completion`: rows of a known form to conversations.

A format of one's own is such a stage: it takes rows and gives conversations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, TypeVar

from fitune import Conversation, DataContext, DataError, DataStage, Origin, Row, Stage, hookimpl, nearest
from fitune_plugins.data import loss_keys
from fitune_plugins.data.row import bad, column, parsed, shown, text, unpacked
from fitune_plugins.data.tool_calls import calls, tools
from fitune_plugins.data.turns import Turn, conversation, is_empty, turns, with_word


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatOptions:
    """Options of every format."""

    loss_keys: bool = True
    """Whether a row's own word on what of it is trained on is obeyed: `weight`, `train`, `loss` and the like, of a
    message or of the row. Else such keys are passed over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MessagesOptions(FormatOptions):
    """Options of the stage `messages`."""

    messages: str = "messages"
    """Column with a list of {role, content} messages."""
    tools: str = "tools"
    """Column with the tools that the assistant may call, as a list or as JSON; rows without it have none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareGptOptions(FormatOptions):
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
class AlpacaOptions(FormatOptions):
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
class PromptCompletionOptions(FormatOptions):
    """Options of the stage `prompt-completion`."""

    prompt: str = "prompt"
    """Column with the question: a text, or a list of messages."""
    completion: str = "completion"
    """Column with the answer: a text, or a list of messages."""
    system: str = "system"
    """Column with a system message; rows without it have none."""
    tools: str = "tools"
    """Column with the tools that the assistant may call, as a list or as JSON; rows without it have none."""


O = TypeVar("O", bound=FormatOptions)  # noqa: E741 - options, as in every provider's docstring

Read = Callable[[O, Row], Conversation]

UNTRAINED = "rows left out: they say themselves that nothing of them is trained on"

EMPTY = "answers not trained on: empty"

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
    value, what = column(row, options.messages, "messages"), f'column "{options.messages}"'
    found = turns(value, row.origin, what, loss=options.loss_keys)
    return conversation(found, row, tools_of(row, options.tools), word=_word(options, row))


def read_sharegpt(options: ShareGptOptions, row: Row) -> Conversation:
    """A row of ShareGPT's form."""
    what = f'column "{options.conversations}"'
    value = unpacked(column(row, options.conversations, "conversations"), row.origin, what, "a list of messages")
    if not isinstance(value, list) or not value:
        wanted = f'[{{"{options.role}": "human", "{options.value}": "..."}}, ...]'
        raise bad(row.origin, f"{what} is not a list of messages", f"It takes: {wanted}")
    found = [spoken(options, item, row, number) for number, item in enumerate(value, 1)]
    messages = [*system_of(row, options.system), *found]
    return conversation(messages, row, tools_of(row, options.tools), word=_word(options, row))


def spoken(options: ShareGptOptions, item: Any, row: Row, number: int) -> Turn:
    """A message of ShareGPT's form, the `number`-th of its row."""
    if not isinstance(item, dict) or not isinstance(item.get(options.role), str):
        has = f"It has: {', '.join(map(str, item))}" if isinstance(item, dict) and item else ""
        what = f'message {number} is not an object with "{options.role}" and "{options.value}"'
        raise bad(row.origin, what, has)
    speaker = item[options.role]
    if speaker not in SPEAKERS:
        raise bad(row.origin, f'message {number} is from "{speaker}"', nearest(speaker, SPEAKERS))
    where = f"message {number} ({speaker})"
    said = text(item.get(options.value), row.origin, f'{where}: "{options.value}"')
    keys = (options.role, options.value)
    turn = {key: part for key, part in item.items() if key not in keys and part is not None}
    turn |= {"role": SPEAKERS[speaker], "content": said}
    if speaker == "function_call":
        turn |= {"content": "", "tool_calls": calls(_called(said, row.origin, where), row.origin, where)}
    return with_word(turn, row.origin, where, loss=options.loss_keys)


def _called(said: str, origin: Origin, where: str) -> list[Any]:
    """The tool calls that a message is."""
    found = parsed(said, origin, where, '{"name": "...", "arguments": {}}')
    return found if isinstance(found, list) else [found]


def read_alpaca(options: AlpacaOptions, row: Row) -> Conversation:
    """A row of Alpaca's form."""
    asked = _column_text(row, options.instruction, "instruction")
    about = row.values.get(options.input)
    if about:
        asked += "\n" + text(about, row.origin, f'column "{options.input}"')
    found = system_of(row, options.system)
    what = f'column "{options.history}"'
    for pair in unpacked(row.values.get(options.history), row.origin, what, "a list of pairs") or ():
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise bad(row.origin, f"{what} has {shown(pair)}", "It takes pairs: [instruction, output]")
        before, answer = (text(part, row.origin, f"{what}: a part of it") for part in pair)
        found += _asked_and_answered(before, answer)
    found += _asked_and_answered(asked, _column_text(row, options.output, "output"))
    return conversation(found, row, word=_word(options, row))


def read_prompt_completion(options: PromptCompletionOptions, row: Row) -> Conversation:
    """A row of a question and the answer to it."""
    asked, answer = column(row, options.prompt, "prompt"), column(row, options.completion, "completion")
    question = [*system_of(row, options.system), *_said(options, asked, "user", row, options.prompt)]
    messages = [*question, *_said(options, answer, "assistant", row, options.completion)]
    described = tools_of(row, options.tools)
    return conversation(messages, row, described, asked=len(question), word=_word(options, row))


def _said(options: FormatOptions, value: Any, role: str, row: Row, name: str) -> list[Turn]:
    if isinstance(value, list):
        return turns(value, row.origin, f'column "{name}"', loss=options.loss_keys)
    return [{"role": role, "content": text(value, row.origin, f'column "{name}"')}]


def _asked_and_answered(asked: str, answer: str) -> list[Turn]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def _column_text(row: Row, name: str, option: str) -> str:
    return text(column(row, name, option), row.origin, f'column "{name}"')


def system_of(row: Row, name: str) -> list[Turn]:
    """The system message in a column, if there is one."""
    value = row.values.get(name)
    return [{"role": "system", "content": text(value, row.origin, f'column "{name}"')}] if value else []


def tools_of(row: Row, name: str) -> tuple[Any, ...]:
    """The descriptions of tools in a column, if there are any."""
    value = row.values.get(name)
    return tools(value, row.origin, f'column "{name}"') if value else ()


def _word(options: FormatOptions, row: Row) -> bool | None:
    """What the row as a whole says of being trained on, beside the columns that the options name."""
    columns = (getattr(options, field.name) for field in fields(options))
    return loss_keys.of_row(row.values, row.origin, columns) if options.loss_keys else None


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
        empty = [at for at in found.untrained if is_empty(found.messages[at])]
        for _ in empty:
            context.count(EMPTY)
        if empty or _is_trained_on(found):
            yield found
        else:
            context.count(UNTRAINED)


def _is_trained_on(found: Conversation) -> bool:
    """Whether the row leaves an answer to be trained on."""
    answers = (at for at, turn in enumerate(found.messages) if at >= found.asked and turn["role"] == "assistant")
    return any(at not in found.untrained for at in answers)


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
