"""Data stage `chat`: conversations to text by a chat template, with the assistant's part marked for training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fitune import (
    Conversation,
    DataContext,
    DataError,
    DataStage,
    Dialogue,
    Document,
    Problem,
    Stage,
    hookimpl,
    nearest,
    sentences,
)
from fitune_plugins.data.chat_template import Messages, Refused, Template, Tools, names, open_template
from fitune_plugins.data.masks import Inexact, Masker, Span
from fitune_plugins.data.turns import is_empty


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


def _check(options: ChatOptions) -> Iterable[Problem]:
    known = ["tokenizer", *names()]
    if options.template not in known:
        what = f'no chat template is called "{options.template}"'
        fix = sentences(nearest(options.template, known), "For a file, write template_file = ...")
        yield Problem(key="template", what=what, fix=fix)
    if options.template_file is None:
        return
    if options.template != "tokenizer":
        yield Problem(key="template_file", what='"template_file" is given, and "template" too', fix="Keep one of them")
    elif not options.template_file.is_file():
        what = f"no such file: {options.template_file}"
        yield Problem(key="template_file", what=what, fix="Give the path of a Jinja file")


class _Renderer:
    """Renders conversations; keeps what it has learned of the template."""

    def __init__(self, options: ChatOptions, context: DataContext) -> None:
        self.options = options
        self.context = context
        self.maskers = {False: self._masker(tools=False)}

    def document(self, conversation: Conversation) -> Document:
        """The conversation as text. Raises `DataError`."""
        messages = self._with_system(conversation.messages)
        with_tools = bool(conversation.tools)
        masker = self.maskers.get(with_tools) or self.maskers.setdefault(with_tools, self._masker(tools=True))
        added = len(messages) - len(conversation.messages)
        try:
            if self.options.loss == "all":
                untrained, said = sorted(conversation.untrained), conversation.messages
                left_out = [at + added for at in untrained if not is_empty(said[at])]
                text, spans = masker.spans(messages, conversation.tools, left_out)
                spans = _between(spans, len(text))
            else:
                wanted = [at + added for at in self._wanted(conversation)]
                text, spans = masker.spans(messages, conversation.tools, wanted)
        except Refused as error:
            what = f"{masker.template.place} refuses it: {error}"
            fix = _fix(masker.template, messages, conversation.tools)
            raise DataError(f"{conversation.origin}: {sentences(what, fix)}") from error
        except Inexact as error:
            fix = "Use a template with {% generation %} marks, by template_file"
            raise DataError(f"{conversation.origin}: {sentences(str(error), fix)}") from error
        return Document(text=text, trained=tuple(spans), origin=conversation.origin)

    def _wanted(self, conversation: Conversation) -> list[int]:
        """Places of the answers to be trained on."""
        answers = [at for at, turn in enumerate(conversation.messages) if turn["role"] == "assistant"]
        last = answers[-1:] if self.options.loss == "completion" else answers
        return [at for at in last if at >= conversation.asked and at not in conversation.untrained]

    def dialogue(self) -> Dialogue:
        """How the template writes what a model is asked."""
        masker = self.maskers[False]
        shape = masker.last or masker.inner
        end = shape.mark if shape is not None else ""
        return Dialogue(prompt=self._prompt, end=end, template=masker.template.source)

    def _prompt(self, messages: Messages) -> str:
        """The text that a model is given to answer. Raises `DataError`."""
        template, messages = self.maskers[False].template, self._with_system(messages)
        try:
            return template.render(messages, prompt=True)
        except Refused as error:
            what = f"{template.place} refuses these messages: {error}"
            raise DataError(sentences(what, _fix(template, messages, ()))) from error

    def _with_system(self, messages: Messages) -> Messages:
        """The messages, with the options' system message if they have none of their own."""
        if self.options.system is None or messages[0]["role"] == "system":
            return messages
        return [{"role": "system", "content": self.options.system}, *messages]

    def _masker(self, *, tools: bool) -> Masker:
        options = self.options
        return Masker(open_template(self.context.tokenizer, options.template, options.template_file, tools=tools))


def _between(spans: Sequence[Span], length: int) -> list[Span]:
    """What a text of this length holds beside these ranges."""
    borders = [0, *(border for span in spans for border in span), length]
    return [(start, end) for start, end in zip(borders[::2], borders[1::2], strict=True) if start < end]


def _fix(template: Template, messages: Messages, tools: Tools) -> str:
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


def _make(options: ChatOptions, context: DataContext) -> Stage:
    renderer = _Renderer(options, context)

    def chat(conversations: Iterator[Conversation]) -> Iterator[Document]:
        for conversation in conversations:
            try:
                document = renderer.document(conversation)
            except DataError as error:
                context.reject(error)
                continue
            yield document

    return chat


@hookimpl
def ft_data_stages() -> Iterable[DataStage[ChatOptions]]:
    """Offer the stage."""
    yield DataStage(
        name="chat",
        summary="Conversations to text by a chat template; trains on the assistant's turns only",
        options=ChatOptions,
        takes="conversations",
        gives="documents",
        make=_make,
        check=_check,
        dialogue=lambda options, context: _Renderer(options, context).dialogue(),
    )
