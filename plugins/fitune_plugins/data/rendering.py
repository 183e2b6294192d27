"""Conversations to documents by a chat template: all that a row says is in the text, and each answer has an end."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fitune import Conversation, DataContext, DataError, Document, sentences
from fitune_plugins.data.chat_template import Choice, Endless, Messages, Refused, Template, Tools, open_template
from fitune_plugins.data.frames import Frames
from fitune_plugins.data.masks import Answer, Inexact, Masker
from fitune_plugins.data.otherwise import Otherwise
from fitune_plugins.data.parts import Span
from fitune_plugins.data.presence import Lost, Presence
from fitune_plugins.data.reading import Reading
from fitune_plugins.data.turns import is_empty

Loss = Literal["assistant", "completion", "all"]

NO_END = "answers that nothing ends: the model does not learn to stop there"

UNMARKED = "answers of which the template's own {% generation %} marks leave out a part"

INEXACT = "is rendered in a way that does not show exactly which text is its own"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How conversations are rendered."""

    choice: Choice
    loss: Loss
    system: str | None
    end: tuple[str, ...]
    """What may end an answer that the template does not end; the first is written behind the last answer."""


class Renderer:
    """Renders conversations; keeps what it has learned of the template."""

    def __init__(self, settings: Settings, context: DataContext, *, tools: bool = False) -> None:
        """Raises `DataError` where the template cannot be used; `tools` asks for the one made for them."""
        self.settings, self.context = settings, context
        self.masker = Masker(open_template(context.tokenizer, settings.choice, tools=tools))
        self.template = self.masker.template
        self.frames = Frames()
        self.presence = Presence(self.template, context.count)
        self.otherwise = Otherwise(self.template, self.masker.shapes, context.count)

    def document(self, conversation: Conversation) -> Document:
        """The conversation as text. Raises `DataError`."""
        messages = with_system(conversation.messages, self.settings.system)
        added = len(messages) - len(conversation.messages)
        try:
            reading = self._read(messages, conversation.tools)
            for lost in self.presence.lost(reading):
                raise self._left_out(lost, messages, added)
            self.otherwise.tell(reading)
            text, spans = self._trained(reading, conversation, added)
        except Endless as error:
            what = f"{self.template.place} is refused: for this row {error}"
            raise DataError(f"{conversation.origin}: {sentences(what, 'Use another template')}") from error
        except Refused as error:
            what = f"{self.template.place} refuses it: {error}"
            fix = fix_of(self.template, messages, conversation.tools)
            raise DataError(f"{conversation.origin}: {sentences(what, fix)}") from error
        except Inexact as error:
            what = f"message {error.message + 1 - added} {INEXACT}"
            fix = "Use a template with {% generation %} marks, by template_file"
            raise DataError(f"{conversation.origin}: {sentences(what, fix)}") from error
        except DataError as error:
            raise DataError(f"{conversation.origin}: {error.message}") from error
        return Document(text=text, trained=tuple(spans), origin=conversation.origin)

    def _read(self, messages: Messages, tools: Tools) -> Reading:
        """The text; with the arguments of calls as objects, or as JSON where the template joins them with texts.

        Raises `Refused`.
        """
        called = any(turn.get("tool_calls") for turn in messages)
        if self.template.dated:
            day = self.settings.choice.day
            self.context.count(f"rows in whose template today is {day} (date = ...)")
        try:
            reading = self._reading(messages, tools)
        except Refused as error:
            if not called or isinstance(error, Endless):
                raise
            return self._reading(list(map(written, messages)), tools)
        if called and any(str(dict(of)) in reading.text for of in _arguments(messages) if of):  # as Python writes it
            return self._reading(list(map(written, messages)), tools)
        return reading

    def _reading(self, messages: Messages, tools: Tools) -> Reading:
        return Reading(self.template, messages, tools, self.template.render(messages, tools), self.frames)

    # ------------------------------------------------------------------------------------------- what is trained on

    def _trained(self, reading: Reading, conversation: Conversation, added: int) -> tuple[str, list[Span]]:
        """The text and what is trained on in it. Raises `Refused`, `Inexact` or `DataError`."""
        said = conversation.messages
        if self.settings.loss == "all":
            left_out = [at + added for at in sorted(conversation.untrained) if not is_empty(said[at])]
            answers = self.masker.answers(reading, left_out)
            return reading.text, _beside([answer.span for answer in answers], len(reading.text))
        turns = [at for at, turn in enumerate(said) if turn["role"] == "assistant"]
        turns = turns[-1:] if self.settings.loss == "completion" else turns
        wanted = [at for at in turns if at >= conversation.asked and at not in conversation.untrained]
        answers = self.masker.answers(reading, [at + added for at in wanted])
        if self.template.marked:
            self._marked(reading, answers, [at + added for at in wanted])
        if answers and answers[-1].message == len(reading.messages) - 1:
            self.otherwise.tell_asked()
        return self._ended(reading, answers, added)

    def _marked(self, reading: Reading, answers: Sequence[Answer], wanted: Sequence[int]) -> None:
        """Tell of answers that are not within the template's own marks as a whole."""
        for at in wanted:
            spans = [answer.span for answer in answers if answer.message == at]
            places = [reading.found.places[part] for part in reading.parts.get(at, ())]
            if not all(any(start <= begin and last <= end for start, end in spans) for begin, last in places):
                self.context.count(UNMARKED)

    def _ended(self, reading: Reading, answers: list[Answer], added: int) -> tuple[str, list[Span]]:
        """The text and the ranges of answers, each to its end. Raises `DataError` if nothing ends the last of them."""
        text, spans = reading.text, []
        for answer in answers:
            start, end = answer.span
            last = answer is answers[-1]
            if answer.ends != "mark":
                behind = end + len(text[end:]) - len(text[end:].lstrip())
                found = next((mark for mark in self.settings.end if text.startswith(mark, behind)), None)
                if found is not None:
                    end = behind + len(found)
                elif last and behind == len(text) and self.settings.end:
                    text = text[:end] + self.settings.end[0]
                    end = len(text)
                elif last and answer.ends == "not":
                    raise self._endless(answer.message + 1 - added)
                else:
                    self.context.count(NO_END)
            spans.append((start, end))
        return text, spans

    # ------------------------------------------------------------------------------------------------------ errors

    def _endless(self, number: int) -> DataError:
        eos = self.context.tokenizer.eos_token or "<|end|>"
        what = f"{self.template.place} writes nothing that ends the answer in message {number}"
        fix = f"The model would not learn to stop. Say what is to end it, e.g. end = {json.dumps([eos])}"
        return DataError(sentences(what, fix))

    def _left_out(self, lost: Lost, messages: Messages, added: int) -> DataError:
        """The error of something that a row says and its text does not."""
        place = self.template.place
        if lost.message is None:
            what = f"{place} leaves out {lost.what}"
            return DataError(sentences(what, self._way_out()))
        role, number = messages[lost.message]["role"], lost.message + 1 - added
        if lost.what == "its content" and role == "assistant" and not messages[lost.message].get("tool_calls"):
            raise Inexact(lost.message)
        where = f"message {number} ({role})" if number else "the stage's system message"
        return DataError(sentences(f"{where}: {place} leaves out {lost.what}", self._way_out()))

    def _way_out(self) -> str:
        """Names a shipped template that renders all, of the tokenizer's own kind."""
        known = set(map(str, self.context.tokenizer.added_tokens_decoder.values()))
        name = "llama-3" if "<|start_header_id|>" in known else "chatml"
        own = self.settings.choice.file is None and self.settings.choice.name == name
        fix = f'Use a template that renders it, e.g. template = "{name}"'
        return "Leave such rows out, or use a template that renders it" if own else fix


def with_system(messages: Messages, system: str | None) -> Messages:
    """The messages, with a system message if they have none of their own."""
    if system is None or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": system}, *messages]


def fix_of(template: Template, messages: Messages, tools: Tools) -> str:
    """What to do about messages that a template refuses, found by rendering them without what it may not know."""
    without_system = [turn for turn in messages if turn["role"] != "system"]
    if len(without_system) < len(messages) and _takes(template, without_system, tools):
        return "Leave its system message out, or put that text in front of the first question"
    if any(turn["role"] == "tool" or turn.get("tool_calls") for turn in messages):
        return "Use a template that knows tools, or leave rows with tool calls out"
    joined = [turn for turn, before in zip(messages, [None, *messages], strict=False)
              if before is None or turn["role"] != before["role"]]  # fmt: skip
    if len(joined) < len(messages) and _takes(template, joined, tools):
        return "Join messages of one role that follow each other"
    return ""


def _takes(template: Template, messages: Messages, tools: Tools) -> bool:
    try:
        template.render(messages, tools)
    except Refused:
        return False
    return True


def _arguments(messages: Messages) -> Iterator[Mapping[str, Any]]:
    for turn in messages:
        for call in turn.get("tool_calls") or ():
            if isinstance(call["function"]["arguments"], Mapping):
                yield call["function"]["arguments"]


def written(turn: Mapping[str, Any]) -> Mapping[str, Any]:
    """A turn with the arguments of its calls as JSON text: as the row has it, where it has a text."""
    if not turn.get("tool_calls"):
        return turn
    return {**turn, "tool_calls": [_call(call) for call in turn["tool_calls"]]}


def _call(call: Mapping[str, Any]) -> Mapping[str, Any]:
    arguments = call["function"]["arguments"]
    if not isinstance(arguments, str):
        arguments = getattr(arguments, "written", None) or json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**call["function"], "arguments": arguments}}


def _beside(spans: Sequence[Span], length: int) -> list[Span]:
    """What a text of this length holds beside these ranges."""
    borders = [0, *(border for span in spans for border in span), length]
    return [(start, end) for start, end in zip(borders[::2], borders[1::2], strict=True) if start < end]
