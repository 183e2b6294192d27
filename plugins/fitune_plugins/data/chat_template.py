"""Chat templates: the tokenizer's own, those that are shipped by name, or a file; and the one way to render them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitune import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DIRECTORY = Path(__file__).parent / "templates"

Messages = Sequence[Mapping[str, Any]]

Tools = Sequence[Mapping[str, Any]]


class Refused(Exception):
    """A template does not take these messages; the message says why, in the template's words."""


def names() -> list[str]:
    """The names of the templates that are shipped."""
    return sorted(file.stem for file in DIRECTORY.glob("*.jinja"))


def named(name: str) -> str:
    """A shipped template, as Jinja."""
    return (DIRECTORY / f"{name}.jinja").read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A chat template with the special tokens of a tokenizer."""

    source: str
    """The template, as Jinja."""
    place: str
    """Where it comes from, for error messages."""
    tokens: Mapping[str, Any]
    """The tokenizer's special tokens that it uses, by name, e.g. `eos_token`."""
    special: re.Pattern[str]
    """Matches any special token of the tokenizer."""

    @property
    def marked(self) -> bool:
        """Whether the template says itself what the assistant writes, between `{% generation %}` marks."""
        return re.search(r"\{%-?\s*generation\s*-?%\}", self.source) is not None

    def render(self, messages: Messages, tools: Tools = (), *, prompt: bool = False) -> str:
        """The text of messages; with `prompt`, up to where the assistant's next answer begins. Raises `Refused`."""
        return self._render(messages, tools, add_generation_prompt=prompt)[0]

    def render_marked(self, messages: Messages, tools: Tools = ()) -> tuple[str, list[tuple[int, int]]]:
        """The text of messages, and what stands between generation marks in it. Raises `Refused`."""
        return self._render(messages, tools, return_assistant_tokens_mask=True)

    def _render(self, messages: Messages, tools: Tools, **how: Any) -> tuple[str, list[tuple[int, int]]]:
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        render: Any = render_jinja_template  # declared to give a text alone
        try:
            texts, marks = render(
                conversations=[messages],
                tools=list(tools) or None,
                chat_template=self.source,
                **how,
                **self.tokens,
            )
        # What a template's expressions may raise.
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
            raise Refused(str(error)) from error
        return texts[0], [(start, end) for start, end in marks[0]] if marks else []


def open_template(tokenizer: PreTrainedTokenizerBase, name: str, file: Path | None, *, tools: bool = False) -> Template:
    """The template that options name, with the tokenizer's tokens; `tools` asks for the one made for them.

    Raises `DataError` if there is none, or if it is not Jinja.
    """
    from jinja2 import TemplateSyntaxError

    if file is not None:
        source, place = _read(file), str(file)
    elif name != "tokenizer":
        source, place = named(name), f'the chat template "{name}"'
    else:
        source, place = _own(tokenizer, tools), "the chat template"
    marks = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    marks.update(map(str, tokenizer.all_special_tokens))
    longest_first = sorted(filter(None, marks), key=len, reverse=True)
    template = Template(
        source=source,
        place=place,
        tokens={name: token for name, token in tokenizer.special_tokens_map.items() if name in source},
        special=re.compile("|".join(map(re.escape, longest_first)) or r"(?!)"),
    )
    try:
        template.render([{"role": "user", "content": ""}])
    except Refused as error:
        cause = error.__cause__
        if isinstance(cause, TemplateSyntaxError):
            what = f"{place}:{cause.lineno}: not Jinja: {cause.message}"
            raise DataError(f"{what}. Mend it, or use another template") from error
    return template


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{file}: the chat template cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: the chat template is not UTF-8. Save the file as UTF-8") from error


def _own(tokenizer: PreTrainedTokenizerBase, tools: bool) -> str:
    """The tokenizer's own; where it has several, the one for tools or the default."""
    own: Any = tokenizer.chat_template
    if isinstance(own, Mapping):
        own = (own.get("tool_use") if tools else None) or own.get("default")
    if own is None:
        raise DataError(
            'the tokenizer has no chat template, which the stage "chat" needs. Use a model with one (an "instruct" or '
            f'"chat" model), or name one: template = one of {", ".join(names())}'
        )
    return str(own)
