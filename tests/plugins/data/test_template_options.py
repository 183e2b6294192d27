"""A template's variables, its date, its form as a file, and what follows from it when the model answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fitune import Conversation, DataError, Dialogue, Document, Origin
from fitune.compose.stopping import Ends, ends_of
from fitune.plugin.options import parse
from fitune_plugins.data import chat
from fitune_plugins.data.chat_template import Template
from support.template_kinds import (
    CHANNELS,
    HEADERS_NAMED,
    NO_THOUGHTS,
    NOTHING_BUT_CONTENT,
    ROME,
    WEATHER,
    answer,
)
from support.templates import FAMILIES, context, conversation, error, label, marked, render, targets, tokenizer

CHATML = FAMILIES[0]
TALK = conversation("a?", "one", "b?", "two")
DATED = "{{- strftime_now('%d %b %Y, %A, %-d/%-m') + '\\n' -}}" + NOTHING_BUT_CONTENT.template


def check(**options: Any) -> list[str]:
    (stage,) = chat.ft_data_stages()
    chosen, problems = parse(stage.options, options)
    return [problem.sentence() for problem in (stage.check(chosen) if chosen else problems)]


def dialogue(template: str, family: Any = CHATML, **options: Any) -> Dialogue | None:
    made = tokenizer(family)
    made.chat_template = template
    (stage,) = chat.ft_data_stages()
    assert stage.dialogue is not None
    return stage.dialogue(chat.ChatOptions(**options), context(made))


# ----------------------------------------------------------------------------------------------------------- variables


def test_variables_are_texts_numbers_truth_values_and_arrays() -> None:
    assert check(variables={"a": "x", "b": 1, "c": 0.5, "d": False, "e": ["x", "y"]}) == []
    assert check(variables={"a": {"b": 1}})[0].startswith('"variables" is {a = {b = 1}}.')
    assert check(variables="x")[0].startswith('"variables" is "x". It takes: table')


def test_a_variable_that_the_template_never_reads_is_an_error() -> None:
    made = tokenizer(CHATML)
    made.chat_template = NO_THOUGHTS.template
    wrong = error(TALK, made, variables={"enable_thinkin": False})
    assert wrong == (
        'the chat template never reads the variable "enable_thinkin", so it would change nothing. '
        'Did you mean "enable_thinking"?'
    )
    for taken in ("messages", "tools", "eos_token", "ns", "m"):
        assert f'never reads the variable "{taken}"' in error(TALK, made, variables={taken: "x"})
    none = error(TALK, made, template="chatml", variables={"a": 1})
    assert none.startswith('the chat template "chatml" never reads the variable "a", so it would change nothing. ')
    assert none.endswith(". It reads none: leave it out")


def test_the_prompt_has_the_variables_too_and_so_has_the_template_that_is_saved() -> None:
    asked = [{"role": "user", "content": "a?"}]
    closed = dialogue(NO_THOUGHTS.template, **NO_THOUGHTS.options)
    assert closed is not None
    assert closed.prompt(asked).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    made = tokenizer(CHATML)
    made.chat_template = closed.template

    def prompt(**given: Any) -> Any:
        return made.apply_chat_template(asked, add_generation_prompt=True, tokenize=False, **given)

    assert prompt() == closed.prompt(asked)
    assert prompt(enable_thinking=True).endswith("<|im_start|>assistant\n<think>\n"), "others may still be given"


def test_a_saved_template_keeps_its_white_space() -> None:
    source = "\n  {% if a %}{{ a }}{% endif %}{% if b is defined %}{{ b }}{% endif %}\n x"
    template = Template(source=source, place="", tokens={}, special=_nothing(), variables={"a": 'x"y', "b": [1]})
    saved = Template(source=template.saved, place="", tokens={}, special=_nothing())
    assert saved.render([]) == template.render([])
    assert template.saved.endswith(source)


def _nothing() -> Any:
    import re

    return re.compile(r"(?!)")


# ---------------------------------------------------------------------------------------------------------------- date


def test_a_date_is_the_same_on_any_day() -> None:
    made = tokenizer(CHATML)
    made.chat_template = DATED
    assert render(made, TALK).text.startswith("01 Jan 2025, Wednesday, 1/1\n<|im_start|>user\n")
    assert render(made, TALK, date="2026-11-07").text.startswith("07 Nov 2026, Saturday, 7/11\n<|im_start|>user\n")
    assert check(date="2026-11-07") == []
    assert check(date="7.11.2026") == ['"7.11.2026" is no day. Write it as "2025-01-01"']
    at = dialogue(DATED, date="2026-11-07")
    assert at is not None
    assert at.prompt([{"role": "user", "content": "a?"}]).startswith("07 Nov 2026")
    assert at.template == DATED, "the model that is saved is told the day on which it answers"


def test_a_date_is_told_where_the_template_writes_one() -> None:
    made, counted = tokenizer(CHATML), list[str]()
    (stage,) = chat.ft_data_stages()
    named = "{%- if not today is defined -%}{%- set today = strftime_now('%d %b') -%}{%- endif -%}{{- today -}}"
    cases: tuple[tuple[str, dict[str, Any], bool], ...] = (
        (DATED, {}, True),
        (named + NOTHING_BUT_CONTENT.template, {}, True),
        (named + NOTHING_BUT_CONTENT.template, {"variables": {"today": "1 May"}}, False),
        ("{%- set unused = 'strftime_now' -%}" + NOTHING_BUT_CONTENT.template, {}, False),
    )
    for template, options, told in cases:
        made.chat_template = template
        counted.clear()
        list(stage.make(chat.ChatOptions(**options), context(made, counted))(iter([TALK])))
        assert counted == (["rows in whose template today is 2025-01-01 (date = ...)"] if told else [])


@pytest.mark.parametrize("before", ["", "\n", "  ", "\n  ", "x\n"])
def test_the_date_changes_no_white_space(before: str) -> None:
    source = before + "{% if true %}\nx{% endif %}\n{{ strftime_now('%Y') }}\n"
    with_date = Template(source=source, place="", tokens={}, special=_nothing())
    without = Template(source=source.replace("strftime_now('%Y')", "'2025'"), place="", tokens={}, special=_nothing())
    assert with_date.render([]) == without.render([])


# ---------------------------------------------------------------------------------------------------------------- file


def test_a_byte_order_mark_is_no_part_of_a_template(tmp_path: Path) -> None:
    (file := tmp_path / "t.jinja").write_text("\ufeff" + NOTHING_BUT_CONTENT.template, encoding="utf-8")
    made = tokenizer(CHATML)
    assert render(made, TALK, template_file=file).text.startswith("<|im_start|>user")
    made.chat_template = "\ufeff" + NOTHING_BUT_CONTENT.template
    assert render(made, TALK).text.startswith("<|im_start|>user")


# --------------------------------------------------------------------------------------------------------------- ends


def test_a_model_stops_at_all_that_may_end_its_answers() -> None:
    of_channels = dialogue(CHANNELS.template, CHANNELS.family)
    assert of_channels is not None
    marks = ("<|return|>", "<|end|>", "<|call|>")
    assert (of_channels.end, of_channels.ends) == ("<|return|>", marks)
    made: Any = tokenizer(CHANNELS.family)
    assert ends_of(made, of_channels) == Ends(tokens=tuple(sorted(map(made.convert_tokens_to_ids, marks))))
    named = dialogue(HEADERS_NAMED.template, HEADERS_NAMED.family, **HEADERS_NAMED.options)
    made = tokenizer(HEADERS_NAMED.family)
    stops = ("<|endoftext|>", "<|user|>", "<|tool|>")
    assert ends_of(made, named) == Ends(tokens=tuple(sorted(map(made.convert_tokens_to_ids, stops))))


CALLS = (
    "{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\\n' -}}"
    "{%- if m.tool_calls -%}{% generation %}{{- m.tool_calls[0].function | tojson -}}"
    "{{- '<|endoftext|>' if loop.last else '<|fim_pad|>' -}}{% endgeneration %}"
    "{%- elif m.role == 'assistant' -%}{% generation %}{{- m.content + '<|im_end|>' -}}{% endgeneration %}"
    "{%- else -%}{{- m.content + '<|im_end|>' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


def test_the_ends_of_calls_are_ends_too() -> None:
    """At the end of a conversation and within it; and nothing is said of a template that knows no tools."""
    found = dialogue(CALLS, replace(CHATML, others=(*CHATML.others, "<|endoftext|>", "<|fim_pad|>")))
    assert found is not None
    assert found.ends == ("<|im_end|>", "<|endoftext|>", "<|fim_pad|>")
    without = dialogue(NOTHING_BUT_CONTENT.template)
    assert without is not None
    assert without.ends == ("<|im_end|>",)


def test_an_end_that_is_not_a_text_is_refused() -> None:
    assert check(end=["<|user|>"]) == []
    assert check(end=[""]) == ["an empty text ends nothing. Write a text, or leave it out"]


def test_white_space_is_no_end_and_is_told() -> None:
    made, counted = tokenizer(CHATML), list[str]()
    made.chat_template = NOTHING_BUT_CONTENT.template.replace("<|im_end|>", "")
    (stage,) = chat.ft_data_stages()
    (found,) = stage.make(chat.ChatOptions(), context(made, counted))(iter([TALK]))
    assert marked(found) == ["one", "two"]
    assert counted == ["answers that nothing ends: the model does not learn to stop there"] * 2
    assert marked(render(made, TALK, end=("<|im_start|>",))) == ["one\n<|im_start|>", "two<|im_start|>"]


# --------------------------------------------------------------------------------------------------- without a template


ASKED = Conversation(
    messages=({"role": "user", "content": "Q: 1+1\nA:"}, {"role": "assistant", "content": " 2"}),
    origin=Origin(file="data.jsonl", row=1),
    asked=1,
)


def test_a_prompt_and_a_completion_need_no_template() -> None:
    made, counted = tokenizer(FAMILIES[2]), list[str]()
    made.chat_template = None
    (stage,) = chat.ft_data_stages()
    (document,) = stage.make(chat.ChatOptions(), context(made, counted))(iter([ASKED]))
    assert isinstance(document, Document)
    assert document.text == "Q: 1+1\nA: 2<|eot_id|>"
    assert targets(made, label(made, document)) == [" 2<|eot_id|>"]
    assert counted == ["rows trained on as plain text, question and answer joined: the model has no chat template"]
    assert dialogue_without(made) is None
    for talk, system in ((TALK, None), (ASKED, "x"), (conversation("a?", "one"), None)):
        with pytest.raises(DataError, match="the tokenizer has no chat template"):
            list(stage.make(chat.ChatOptions(system=system), context(made, skip=True))(iter([talk])))


def dialogue_without(made: Any) -> Dialogue | None:
    (stage,) = chat.ft_data_stages()
    assert stage.dialogue is not None
    return stage.dialogue(chat.ChatOptions(), context(made))


# ------------------------------------------------------------------------------------------------- shipped templates


@pytest.mark.parametrize("name", ["chatml", "llama-3", "qwen"])
def test_shipped_templates_write_tools_calls_and_thoughts(name: str) -> None:
    family = next(family for family in FAMILIES if family.name == name)
    talk = conversation(
        {"role": "system", "content": "Be brief."},
        "Rome?",
        answer("I look.", ROME, ROME, thought="so"),
        {"role": "tool", "content": "sun"},
        answer("Sunny.", thought="hm"),
        tools=[WEATHER],
    )
    document = render(tokenizer(family), talk, template=name)
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome", "days": 3}}\n</tool_call>'
    first = f"<think>\nso\n</think>\n\nI look.\n{call}\n{call}"
    assert marked(document) == [first + family.mark, "<think>\nhm\n</think>\n\nSunny." + family.mark]
    assert document.text.count("Be brief.") == document.text.count("Tells the weather of a town") == 1


def test_a_token_that_the_tokenizer_does_not_have_is_named() -> None:
    said = error(conversation("a?", "one"), tokenizer(CHATML), template="llama-2")
    assert said.endswith("refuses it: it writes the tokenizer's bos_token, and the tokenizer has none")


# ---------------------------------------------------------------------------------------------------------------- time


@pytest.mark.parametrize("template", [NOTHING_BUT_CONTENT.template, NO_THOUGHTS.template], ids=["plain", "thoughts"])
def test_a_conversation_is_rendered_a_few_times_however_long(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tokenizer(CHATML)
    made.chat_template = template
    turns = [0]
    whole = Template._render

    def counting(self: Template, messages: Any, *arguments: Any, **how: Any) -> Any:
        turns[0] += len(messages)
        return whole(self, messages, *arguments, **how)

    monkeypatch.setattr(Template, "_render", counting)
    render(made, conversation(*[f"text {number}" for number in range(800)]))
    assert turns[0] < 3 * 800, "messages that are rendered in all"
