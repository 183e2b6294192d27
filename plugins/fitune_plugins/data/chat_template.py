"""Chat templates: the tokenizer's own, those that are shipped by name, or a file; and the one way to render them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from fitune import DataError, nearest, sentences
from fitune_plugins.data.template_date import on_day, writes_date
from fitune_plugins.data.turns import THOUGHTS
from fitune_plugins.text_files import text_of

if TYPE_CHECKING:
    from jinja2 import nodes as jinja_nodes
    from transformers import PreTrainedTokenizerBase

DIRECTORY = Path(__file__).parent / "templates"

Messages: TypeAlias = Sequence[Mapping[str, Any]]

Tools: TypeAlias = Sequence[Mapping[str, Any]]

Value: TypeAlias = "str | bool | int | float | tuple[str, ...]"
"""What a variable of a template may be."""

TAKEN = {"messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now", "namespace"}
"""Names that templates are given by transformers and Jinja."""

TOKENS = {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"}
"""Names under which they are given the tokenizer's tokens."""

DAY = date(2025, 1, 1)
"""What templates take for today, unless they are told another day."""


class Refused(Exception):
    """A template does not take these messages; the message says why, in the template's words."""


class Endless(Refused):
    """A template would work without end, or make more than the memory holds."""


def names() -> list[str]:
    """The names of the templates that are shipped."""
    return sorted(file.stem for file in DIRECTORY.glob("*.jinja"))


def named(name: str) -> str:
    """A shipped template, as Jinja."""
    return (DIRECTORY / f"{name}.jinja").read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which template is used, and with what."""

    name: str = "tokenizer"
    """`tokenizer` for the tokenizer's own, or the name of one that is shipped."""
    file: Path | None = None
    """Used in place of `name`."""
    variables: Mapping[str, Value] = field(default_factory=dict)
    """Given to the template under these names."""
    day: date = DAY


@dataclass(frozen=True, kw_only=True)
class Template:
    """A chat template with the special tokens of a tokenizer."""

    source: str
    """The template, as Jinja."""
    place: str
    """Where it comes from, for error messages."""
    tokens: Mapping[str, Any]
    """The tokenizer's special tokens that it uses, by name, e.g. `eos_token`."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """What the recipe gives it, by name."""
    special: re.Pattern[str]
    """Matches any special token of the tokenizer."""
    day: date = DAY
    """What it takes for today, so that the same rows are the same text on any day."""
    parts: bool = False
    """Whether it takes contents as lists of parts alone, as templates of models that see images may."""

    @cached_property
    def marked(self) -> bool:
        """Whether the template says itself what the assistant writes, between `{% generation %}` marks."""
        return re.search(r"\{%-?\s*generation\s*-?%\}", self.source) is not None

    @cached_property
    def dated(self) -> bool:
        """Whether the template writes today's date."""
        if not writes_date(self.source):
            return False
        asked = [{"role": "user", "content": "question"}]
        with suppress(Refused):
            return self.render(asked) != replace(self, day=self.day + timedelta(days=400)).render(asked)
        return True

    @cached_property
    def named(self) -> frozenset[str]:
        """What the template reads by name of something else, a message say: `m.name`, `m["name"]`, `"name" in m`."""
        from jinja2 import nodes

        parsed = _parsed(self.source)
        texts = (node.value for node in parsed.find_all(nodes.Const) if isinstance(node.value, str))
        return frozenset([*(node.attr for node in parsed.find_all(nodes.Getattr)), *texts])

    @cached_property
    def saved(self) -> str:
        """The template with the recipe's variables as what they are where nobody gives others."""
        sets = "".join(
            f"{{%- if {name} is not defined -%}}{{%- set {name} = {json.dumps(value)} -%}}{{%- endif "
            + ("-%}" if number < len(self.variables) else "+%}")
            for number, (name, value) in enumerate(self.variables.items(), 1)
        )
        return sets + self.source

    @cached_property
    def rendered(self) -> str:
        """The template that is rendered: its source, on a day."""
        return on_day(self.source, self.day)

    def render(self, messages: Messages, tools: Tools = (), *, prompt: bool = False) -> str:
        """The text of messages; with `prompt`, up to where the assistant's next answer begins. Raises `Refused`."""
        return self._render(messages, tools, add_generation_prompt=prompt)[0]

    def render_marked(self, messages: Messages, tools: Tools = ()) -> tuple[str, list[tuple[int, int]]]:
        """The text of messages, and what stands between generation marks in it. Raises `Refused`."""
        return self._render(messages, tools, return_assistant_tokens_mask=True)

    def _render(self, messages: Messages, tools: Tools, **how: Any) -> tuple[str, list[tuple[int, int]]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        from fitune_plugins.data.template_bounds import within_bounds
        from fitune_plugins.data.template_work import TooMuch

        render: Any = render_jinja_template  # declared to give a text alone
        try:
            texts, marks = render(
                conversations=[[_formed(turn, parts=self.parts) for turn in messages]],
                tools=list(tools) or None,
                chat_template=within_bounds(self.rendered),
                **how,
                **self.tokens,
                **self.variables,
            )
        except TooMuch as error:
            raise Endless(str(error)) from None
        except RecursionError:
            raise Endless("it calls itself without end, or is nested too deeply") from None
        except MemoryError:
            raise Endless("its text is larger than the memory") from None
        except (
            Exception
        ) as error:  # what Jinja says of it, and whatever expressions raise: Python's own calls are in them
            raise Refused(_said(error)) from error
        return texts[0], [(start, end) for start, end in marks[0]] if marks else []


def _said(error: Exception) -> str:
    """What is wrong, in words; a special token that the tokenizer does not have by that."""
    text = str(error) or type(error).__name__
    token = re.fullmatch(r"'(\w+_token)' is undefined", text)
    return text if token is None else f"it writes the tokenizer's {token[1]}, and the tokenizer has none"


def _formed(turn: Mapping[str, Any], *, parts: bool) -> Mapping[str, Any]:
    """A turn as the template takes it: a thought under the names that templates read it by, as newer transformers do
    by themselves, and with `parts` its content as a list."""
    thought = next((turn[key] for key in THOUGHTS if isinstance(turn.get(key), str)), None)
    if thought is not None:
        turn = {"thinking": thought, **turn, "reasoning_content": thought}
    if parts and isinstance(turn.get("content"), str):
        turn = {**turn, "content": [{"type": "text", "text": turn["content"]}]}
    return turn


def open_template(tokenizer: PreTrainedTokenizerBase, choice: Choice, *, tools: bool = False) -> Template:
    """The template that is chosen, with the tokenizer's tokens; `tools` asks for the one made for them.

    Raises `DataError` if there is none, if it is not Jinja, or if it knows none of the variables that it is given.
    """
    if choice.file is not None:
        source, place = _read(choice.file), str(choice.file)
    elif choice.name != "tokenizer":
        source, place = named(choice.name), f'the chat template "{choice.name}"'
    else:
        source, place = _own(tokenizer, tools), "the chat template"
    marks = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    marks.update(map(str, tokenizer.all_special_tokens))
    longest_first = sorted(filter(None, marks), key=len, reverse=True)
    tokens = {name: token for name, token in tokenizer.special_tokens_map.items() if name in source}
    variables = {name: list(v) if isinstance(v, tuple) else v for name, v in choice.variables.items()}
    template = Template(
        source=source,
        place=place,
        tokens=tokens,
        variables=variables,
        special=re.compile("|".join(map(re.escape, longest_first)) or r"(?!)"),
        day=choice.day,
    )
    _check(template, choice.variables)
    by_parts = replace(template, parts=True)
    return by_parts if not _says(template) and _says(by_parts) else template


def _says(template: Template) -> bool:
    """Whether a template takes a question and writes it."""
    with suppress(Refused):
        return "question" in template.render([{"role": "user", "content": "question"}])
    return False


def _check(template: Template, variables: Mapping[str, Value]) -> None:
    """Raises `DataError` for a template that is not Jinja, and for a variable that it never reads."""
    from jinja2 import TemplateSyntaxError

    place = template.place
    try:
        template.render([{"role": "user", "content": ""}])
    except Endless as error:
        raise DataError(sentences(f"{place} is refused: {error}", "Use another template")) from error
    except Refused as error:
        cause = error.__cause__
        if isinstance(cause, TemplateSyntaxError):
            what = f"{place}:{cause.lineno}: not Jinja: {cause.message}"
            raise DataError(f"{what}. Mend it, or use another template") from error
    known = _read_by(template.source) - TAKEN - TOKENS if variables else set()
    for name in variables:
        if name not in known:
            what = f'{place} never reads the variable "{name}", so it would change nothing'
            raise DataError(sentences(what, nearest(name, known) if known else "It reads none: leave it out"))


def _read_by(source: str) -> set[str]:
    """The variables that a template reads and does not set itself."""
    from jinja2 import meta

    return meta.find_undeclared_variables(_parsed(source))


def _parsed(source: str) -> jinja_nodes.Template:
    from jinja2 import Environment

    bare = re.sub(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}", "", source)  # transformers' own tag
    return Environment(extensions=["jinja2.ext.loopcontrols"]).parse(bare)


def _read(file: Path) -> str:
    try:
        return text_of(file, "utf-8-sig")  # a byte order mark would begin every row
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
    return str(own).removeprefix("\ufeff")
