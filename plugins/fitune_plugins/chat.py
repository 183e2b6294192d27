"""Data stage `chat`: rows to text by the tokenizer's chat template; only the assistant's turns are trained on.

An assistant's turn is found by rendering twice, which works for templates without generation markers: up to the turn
with the generation prompt, and with the turn. What the second adds is what the model would have had to write: the
answer and the mark that ends it. White space that a template puts behind that mark is not the model's to write.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fitune import DataContext, DataError, DataStage, Document, Problem, Row, hookimpl
from fitune.dataflow import Stage
from fitune.errors import nearest, sentences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """Options of the stage `chat`."""

    messages: str = "messages"
    """Column with a list of {role, content} messages."""
    prompt: str | None = None
    """Column with a question, for data without messages; give `completion` too."""
    completion: str | None = None
    """Column with the answer to it."""
    system: str | None = None
    """System message put before conversations that have none."""


def _check(options: ChatOptions) -> Iterable[Problem]:
    if (options.prompt is None) != (options.completion is None):
        missing = "completion" if options.completion is None else "prompt"
        given = "prompt" if missing == "completion" else "completion"
        yield Problem(key=given, what=f'"{given}" is given without "{missing}"', fix=f'Name the column of "{missing}"')


def _conversation(options: ChatOptions, row: Row) -> list[dict[str, Any]]:
    """The row's messages, checked. Raises `DataError`."""
    if options.prompt is not None and options.completion is not None:
        asked, answer = _column(row, options.prompt, "prompt"), _column(row, options.completion, "completion")
        _must_be_text(asked, row, f'column "{options.prompt}"')
        _must_be_text(answer, row, f'column "{options.completion}"')
        turns: Any = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    else:
        turns = _column(row, options.messages, "messages")
        _must_be_messages(turns, row, options.messages)
    if options.system is not None and turns[0]["role"] != "system":
        turns = [{"role": "system", "content": options.system}, *turns]
    return [dict(turn) for turn in turns]


def _column(row: Row, name: str, option: str) -> Any:
    if name not in row.values:
        what, fix = f'{row.origin}: no column "{name}"', f"Name the column in the stage's table: {option} = ..."
        raise DataError(sentences(what, nearest(name, row.values), fix))
    return row.values[name]


def _must_be_messages(turns: Any, row: Row, column: str) -> None:
    """Raises `DataError` if these are no messages that can be trained on."""
    if not isinstance(turns, list) or not turns:
        wanted = '[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
        raise DataError(f'{row.origin}: column "{column}" is not a list of messages. It takes: {wanted}')
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, Mapping) or not isinstance(turn.get("role"), str):
            has = f". It has: {', '.join(map(str, turn))}" if isinstance(turn, Mapping) and turn else ""
            raise DataError(f"{row.origin}: message {number} is not an object with a role and a content{has}")
        _must_be_text(turn.get("content"), row, f'message {number} ({turn["role"]}): "content"')
    if not any(turn["role"] == "assistant" for turn in turns):
        roles = ", ".join(sorted({turn["role"] for turn in turns}))
        raise DataError(
            f'{row.origin}: no message has the role "assistant", so there is nothing to train on. Roles: {roles}'
        )


def _must_be_text(value: Any, row: Row, what: str) -> None:
    if not isinstance(value, str):
        raise DataError(f"{row.origin}: {what} is {json.dumps(value, default=str)[:60]}, not a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can write half of a pair of surrogates, which no tokenizer takes
        raise DataError(f"{row.origin}: {what} holds half a character (at {error.start}). Leave it out") from error


def _document(turns: list[dict[str, Any]], row: Row, tokenizer: PreTrainedTokenizerBase) -> Document:
    """Render a conversation and find the assistant's part. Raises `DataError`."""
    from jinja2 import TemplateError

    def render(until: int, *, prompt: bool) -> str:
        return str(tokenizer.apply_chat_template(turns[:until], tokenize=False, add_generation_prompt=prompt))

    try:
        text = render(len(turns), prompt=False)
        spans: list[tuple[int, int]] = []
        for number, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            before = render(number, prompt=True) if number else ""
            until = render(number + 1, prompt=False)
            if not (text.startswith(until) and until.startswith(before)):
                raise DataError(
                    f"{row.origin}: the chat template renders message {number + 1} in another way when more follow, "
                    "so the assistant's part cannot be told exactly"
                )
            spans.append((len(before), _end(until, turn["content"])))
    except (TemplateError, TypeError, ValueError, LookupError) as error:  # what a template's expressions may raise
        raise DataError(f"{row.origin}: the chat template refuses it: {error}") from error
    return Document(text=text, trained=tuple(spans), origin=row.origin)


def _end(rendered: str, content: str) -> int:
    """Where a turn at the end of `rendered` ends: behind its end mark, before white space that follows the mark."""
    bare = rendered.rstrip()
    marked = not bare.endswith(content.rstrip()) or not content.strip()
    return len(bare) if marked else len(rendered)


def _make(options: ChatOptions, context: DataContext) -> Stage:
    if context.tokenizer.chat_template is None:
        raise DataError(
            'the tokenizer has no chat template, which the stage "chat" needs. Use a model with one (an "instruct" or '
            '"chat" model)'
        )

    def chat(rows: Iterator[Row]) -> Iterator[Document]:
        for row in rows:
            yield _document(_conversation(options, row), row, context.tokenizer)

    return chat


@hookimpl
def ft_data_stages() -> Iterable[DataStage[ChatOptions]]:
    """Offer the stage."""
    yield DataStage(
        name="chat",
        summary="Conversations to text by the tokenizer's chat template; trains on the assistant's turns only",
        options=ChatOptions,
        takes="rows",
        gives="documents",
        make=_make,
        check=_check,
    )
