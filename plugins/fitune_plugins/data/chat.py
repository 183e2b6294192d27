"""Data stage `chat`: conversations to text by a chat template, with the assistant's part marked for training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal

from fitune import (
    Conversation,
    DataContext,
    DataError,
    DataStage,
    Dialogue,
    Document,
    Example,
    Preference,
    Problem,
    Stage,
    hookimpl,
    nearest,
    sentences,
)
from fitune_plugins.data.call_ends import call_ends
from fitune_plugins.data.chat_template import DAY, Choice, Endless, Messages, Refused, Value, names
from fitune_plugins.data.comparisons import judged, pairs
from fitune_plugins.data.labels import Labeller
from fitune_plugins.data.plain_text import end_of_text
from fitune_plugins.data.rendering import Renderer, Settings, fix_of, with_system
from fitune_plugins.data.tokenize import tokenized

SUMMARY = "Conversations to text by a chat template; trains on the assistant's turns only"

AS_TEXT = "rows trained on as plain text, question and answer joined: the model has no chat template"

GONE_ON = "rows read as texts that begin alike and go on: no chat template is put around them"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """Options of the stage `chat`."""

    template: str = "tokenizer"
    """The chat template: "tokenizer" for the tokenizer's own, or the name of one that is shipped: chatml, deepseek-llm,
    gemma, llama-2, llama-3, mistral, phi-3, qwen, vicuna, zephyr."""
    template_file: Path | None = None
    """File with a chat template, as Jinja, used in place of `template`."""
    loss: Literal["assistant", "completion", "all"] = "assistant"
    """What is trained on: the assistant's turns, its last turn only, or the whole text; of rows with a prompt and a
    completion the assistant's turns in the completion. What a row itself leaves out (`weight = 0`, say) stays out."""
    system: str | None = None
    """System message put before conversations that have none."""
    variables: Mapping[str, Value] | None = None
    """What the template is given by name, e.g. { enable_thinking = false }: texts, numbers, true or false, or arrays of
    texts. One that the template never reads is an error."""
    date: str | None = None
    """The day that a template which writes today's date is given, as YYYY-MM-DD; 2025-01-01 if none is named, so that
    the same rows are the same text on any day."""
    end: tuple[str, ...] | None = None
    """What ends an answer where the template writes nothing that does, e.g. ["<|endoftext|>"]: one of these that
    follows an answer is trained on with it, and the first is put behind the last answer."""


def _check(options: ChatOptions) -> Iterable[Problem]:
    known = ["tokenizer", *names()]
    if options.template not in known:
        what = f'no chat template is called "{options.template}"'
        fix = sentences(nearest(options.template, known), "For a file, write template_file = ...")
        yield Problem(key="template", what=what, fix=fix)
    if options.date is not None and not _is_day(options.date):
        yield Problem(key="date", what=f'"{options.date}" is no day', fix=f'Write it as "{DAY}"')
    if "" in (options.end or ()):
        yield Problem(key="end", what="an empty text ends nothing", fix="Write a text, or leave it out")
    if options.template_file is None:
        return
    if options.template != "tokenizer":
        yield Problem(key="template_file", what='"template_file" is given, and "template" too', fix="Keep one of them")
    elif not options.template_file.is_file():
        what = f"no such file: {options.template_file}"
        yield Problem(key="template_file", what=what, fix="Give the path of a Jinja file")


def _check_compared(options: ChatOptions) -> Iterable[Problem]:
    yield from _check(options)
    if options.loss == "all":
        what = 'loss = "all" trains on questions, but the objective compares answers'
        yield Problem(key="loss", what=what, fix='Use loss = "assistant" or "completion"')


def _is_day(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _settings(options: ChatOptions) -> Settings:
    choice = Choice(
        name=options.template,
        file=options.template_file,
        variables=options.variables or {},
        day=DAY if options.date is None else date.fromisoformat(options.date),
    )
    return Settings(choice=choice, loss=options.loss, system=options.system, end=options.end or ())


def _has_template(options: ChatOptions, context: DataContext) -> bool:
    named = options.template != "tokenizer" or options.template_file is not None
    return named or context.tokenizer.chat_template is not None


# ------------------------------------------------------------------------------------------------------- for training


class _Writer:
    """Conversations to documents, by the template that a run has for them."""

    def __init__(self, options: ChatOptions, context: DataContext) -> None:
        """Raises `DataError` where the template cannot be used."""
        self.options, self.context, self.settings = options, context, _settings(options)
        self.has_template = _has_template(options, context)
        self.renderers = {False: Renderer(self.settings, context)} if self.has_template else {}

    def document(self, conversation: Conversation, *, as_text: bool = False) -> Document:
        """The conversation as text, question and answer joined where no template is to be used. Raises `DataError`."""
        if as_text or self.joins(conversation):
            return _joined(conversation, self.context)
        with_tools = bool(conversation.tools)
        if with_tools not in self.renderers:
            self.renderers[with_tools] = Renderer(self.settings, self.context, tools=with_tools)
        return self.renderers[with_tools].document(conversation)

    def joins(self, conversation: Conversation) -> bool:
        """Whether it is written as plain text, for want of a template."""
        return not self.has_template and self.options.system is None and _is_text(conversation)

    def must_write(self, conversation: Conversation) -> None:
        """Raise the `DataError` that says what is wrong, for which no row is to blame."""
        if not (self.joins(conversation) or self.renderers):
            Renderer(self.settings, self.context)


def _make(options: ChatOptions, context: DataContext) -> Stage:
    writer = _Writer(options, context)

    def chat(conversations: Iterator[Conversation]) -> Iterator[Document]:
        for conversation in conversations:
            writer.must_write(conversation)
            try:
                found = writer.document(conversation)
            except DataError as error:
                context.reject(error)
                continue
            if writer.joins(conversation):
                context.count(AS_TEXT)
            yield found

    return chat


def _make_compared(options: ChatOptions, context: DataContext) -> Stage:
    writer, labeller = _Writer(options, context), Labeller(context.tokenizer)

    def documents(preferences: Iterator[Preference]) -> Iterator[tuple[Preference, list[Document]]]:
        for preference in preferences:
            as_text = preference.as_text
            if not as_text:
                writer.must_write(preference.sides[0])
            try:
                found = [writer.document(side, as_text=as_text) for side in preference.sides]
            except DataError as error:
                context.reject(error)
                continue
            if as_text or writer.joins(preference.sides[0]):
                context.count(GONE_ON if as_text else AS_TEXT)
            yield preference, found

    def chat(preferences: Iterator[Preference]) -> Iterator[Example]:
        rows = tokenized(documents(preferences), labeller, context)
        return judged(rows, context) if context.takes == "labelled" else pairs(rows, context)

    return chat


def _is_text(conversation: Conversation) -> bool:
    """Whether it is a text and what is to follow it, of a row with a prompt and a completion."""
    roles = [turn["role"] for turn in conversation.messages]
    called = conversation.tools or any(turn.get("tool_calls") for turn in conversation.messages)
    return conversation.asked == 1 and roles == ["user", "assistant"] and not called


def _joined(conversation: Conversation, context: DataContext) -> Document:
    """The question and the answer as one text, of which the answer is trained on, to its end."""
    question, answer = (turn["content"] for turn in conversation.messages)
    text = question + answer + end_of_text(context)
    trained = () if 1 in conversation.untrained else ((len(question), len(text)),)
    return Document(text=text, trained=trained, origin=conversation.origin, special=False)


# ---------------------------------------------------------------------------------------------------- for what answers


def _dialogue(options: ChatOptions, context: DataContext) -> Dialogue | None:
    """How the template writes what a model is asked; None where there is none, and texts are gone on with."""
    if not _has_template(options, context):
        return None
    renderer = Renderer(_settings(options), context)
    template, marks = renderer.template, renderer.masker.shapes.marks(last=True)

    def prompt(messages: Messages) -> str:
        asked = with_system(messages, options.system)
        try:
            return template.render(asked, prompt=True)
        except Refused as error:
            what = f"{template.place} refuses these messages: {error}"
            fix = "" if isinstance(error, Endless) else fix_of(template, asked, ())
            raise DataError(sentences(what, fix)) from error

    of_calls = call_ends(Renderer(_settings(options), context, tools=True).masker)
    ends = tuple(dict.fromkeys([*marks, *(options.end or ())]))
    ends += tuple(dict.fromkeys(end for end in of_calls if not any(known.endswith(end) for known in ends)))
    return Dialogue(prompt=prompt, end=ends[0] if ends else "", ends=ends, template=template.saved)


@hookimpl
def ft_data_stages() -> Iterable[DataStage[ChatOptions]]:
    """Offer the stage."""
    compared: DataStage[ChatOptions] = DataStage(
        name="chat",
        summary=SUMMARY,
        options=ChatOptions,
        takes="preferences",
        gives="examples",
        make=_make_compared,
        check=_check_compared,
        dialogue=_dialogue,
    )
    yield DataStage(
        name="chat",
        summary=SUMMARY,
        options=ChatOptions,
        takes="conversations",
        gives="documents",
        make=_make,
        check=_check,
        for_preferences=compared,
        dialogue=_dialogue,
    )
