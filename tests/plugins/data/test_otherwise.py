"""What a template makes of messages otherwise than they say, or than a model is asked, is told."""

from __future__ import annotations

from typing import Any

import pytest

from fitune import Conversation
from fitune_plugins.data import chat
from fitune_plugins.data.otherwise import CHANGED, MOST
from support.template_kinds import PROMPT
from support.templates import FAMILIES, context, conversation, marked, tokenizer

TALK = conversation({"role": "system", "content": "Be brief."}, "a <b>?", "so\nit is", "c?", "one & two")
THINKING = "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n<think>\n' -}}{%- endif -%}"


def template(content: str, prompt: str = PROMPT) -> str:
    turn = "{{- '<|im_start|>' + m.role + '\n' + " + content + " + '<|im_end|>\n' -}}"
    return "{%- for m in messages -%}" + turn + "{%- endfor -%}" + prompt


def told(source: str, talk: Conversation, **options: Any) -> list[str]:
    made, counted = tokenizer(FAMILIES[0]), list[str]()
    made.chat_template = source
    (stage,) = chat.ft_data_stages()
    (document,) = stage.make(chat.ChatOptions(**options), context(made, counted))(iter([talk]))
    assert marked(document)
    return counted


@pytest.mark.parametrize(
    ("content", "times"),
    [
        ("m.content", 0),
        ("m.content | trim", 0),
        ("m.content | tojson", 0),
        ("m.content | upper", 5),
        ("(m.content | replace('\n', ' '))", 1),
        ("(m.content | replace('&', '&amp;'))", 1),
        ("(m.content | striptags)", 2),
    ],
)
def test_words_that_are_written_in_another_way(content: str, times: int) -> None:
    assert told(template(content), TALK) == [CHANGED] * times


def test_keys_that_the_template_does_not_read() -> None:
    asked = {"role": "user", "content": "a?", "images": ["a.png"], "name": "Ann", "empty": [], "none": ""}
    said = {"role": "assistant", "content": "one", "refusal": "no", "reasoning": ""}
    talk = conversation(asked, said)
    words = [f'messages with a "{key}", which the template does not read' for key in ("images", "name", "refusal")]
    assert told(template("m.content"), talk) == words
    assert told(template("(m.name or '') + (m.refusal or '') + m.content"), talk) == words[:1]


def test_a_key_of_messages_is_not_taken_for_what_is_read_elsewhere() -> None:
    """A system message with tools of its own, where the template writes those of the row."""
    own = conversation({"role": "system", "content": "Be brief.", "tools": "[1]"}, "a?", "one")
    source = "{%- if tools -%}{{- (tools | tojson) -}}{%- endif -%}" + template("m.content")
    assert told(source, own) == ['messages with a "tools", which the template does not read']
    assert told(template("m.content + (m.tools or '')"), own) == []
    assert told(template("m.content + (m['tools'] if 'tools' in m else '')"), own) == []
    assert told("{{- (messages[0] | tojson) -}}" + template("m.content"), own) == []


def test_of_many_keys_the_first_are_named() -> None:
    keys = {f"key {number}": True for number in range(MOST + 5)}
    found = told(template("m.content"), conversation("a?", {"role": "assistant", "content": "one", **keys}))
    assert len(found) == MOST + 5
    assert len(set(found)) == MOST + 1


def test_answers_that_stand_behind_another_prompt_than_the_model_is_given() -> None:
    words = 'answers written without "<think>\\n", in which the template\'s prompt for an answer ends'
    assert told(template("m.content", THINKING), TALK) == [words]
    assert told(template("m.content", THINKING), TALK, loss="all") == []
    closed = template("(('<think>\n\n</think>\n\n' if m.role == 'assistant' else '') + m.content)", THINKING)
    assert told(closed, TALK) == []
    left_open = conversation("a?", "one", "b?")
    assert told(template("m.content", THINKING), left_open) == []
