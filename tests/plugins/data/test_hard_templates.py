"""Templates that render a turn in another way when more follow, mark too much or too little, or hide a turn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from fitune import Document
from fitune_plugins.data import chat
from support.templates import (
    FAMILIES,
    Family,
    context,
    conversation,
    error,
    label,
    marked,
    render,
    targets,
    tokenizer,
)

CHATML, LLAMA_3 = FAMILIES[0], FAMILIES[2]
TALK = conversation("a?", "one", "b?", "two")
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
WEATHER = {"type": "function", "function": {"name": "weather"}}
CALLED = conversation(
    "Rome?",
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "sunny"},
    {"role": "assistant", "content": "It is sunny."},
    "And now?",
    {"role": "assistant", "content": "Night."},
    tools=[WEATHER],
)

# As Qwen 3's: only answers behind the last question keep their thoughts, and the last answer gets an empty one.
THINKING = """\
{%- set last = namespace(question=0) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set last.question = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}
{%- set thought, content = '', m.content -%}
{%- if '</think>' in content -%}
{%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') -%}
{%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{%- if m.role == 'assistant' and loop.index0 > last.question and (loop.last or thought) -%}
{{- '<|im_start|>assistant\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') -}}
{%- elif m.role == 'tool' -%}{{- '<|im_start|>user\\n<tool_response>\\n' + content + '\\n</tool_response>' -}}
{%- else -%}{{- '<|im_start|>' + m.role + '\\n' + content -}}{%- endif -%}
{%- for call in m.tool_calls or [] -%}
{{- '<tool_call>\\n' + (call.function | tojson) + '\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

# As Llama 3.1's: tools stand in the first question, calls and results have forms of their own.
TOOLS_IN_QUESTION = """\
{{- bos_token -}}
{%- for m in messages -%}
{%- if m.tool_calls -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' + (m.tool_calls[0].function | tojson) -}}
{%- elif m.role == 'tool' -%}{{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + (m.content | tojson) -}}
{%- else -%}{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' -}}
{%- if loop.first and tools -%}{{- 'Tools: ' + (tools | tojson) + '\\n\\n' -}}{%- endif -%}{{- m.content | trim -}}
{%- endif -%}{{- '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}
"""

# As Mistral's later ones: tools stand before the last question, so that no prompt is what the whole begins with.
TOOLS_BEFORE_LAST = """\
{%- for m in messages -%}
{%- if m.role == 'user' -%}
{%- if tools and m == (messages | selectattr('role', 'equalto', 'user') | list)[-1] -%}{{- 'TOOLS ' -}}{%- endif -%}
{{- '<|im_start|>' + m.content + '<|im_end|>' -}}
{%- else -%}{{- ' ' + m.content + '<|im_end|>' -}}{%- endif -%}
{%- endfor -%}
"""


def made(template: str, family: Any = CHATML) -> PreTrainedTokenizerBase:
    found = tokenizer(family)
    found.chat_template = template
    return found


def check(talk: Any, template: str, expected: list[str], family: Any = CHATML) -> None:
    """What is trained on, as text and as tokens."""
    of = made(template, family)
    document = render(of, talk)
    assert marked(document) == expected
    assert targets(of, label(of, document)) == expected


def test_thoughts_of_earlier_turns_are_left_out_by_the_template() -> None:
    talk = conversation("a?", "<think>\nso\n</think>\n\none", "b?", "<think>\nhm\n</think>\n\ntwo")
    check(talk, THINKING, ["one<|im_end|>", "<think>\nhm\n</think>\n\ntwo<|im_end|>"])


def test_an_empty_thought_that_the_template_adds_is_written_by_the_model() -> None:
    check(TALK, THINKING, ["one<|im_end|>", "<think>\n\n</think>\n\ntwo<|im_end|>"])


def test_calls_where_the_last_answer_is_rendered_in_another_way() -> None:
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>'
    expected = [call, "It is sunny.<|im_end|>", "<think>\n\n</think>\n\nNight.<|im_end|>"]
    check(CALLED, THINKING, expected)


def test_tools_in_the_first_question() -> None:
    call = '{"name": "weather", "arguments": {"city": "Rome"}}<|eot_id|>'
    check(CALLED, TOOLS_IN_QUESTION, [call, "It is sunny.<|eot_id|>", "Night.<|eot_id|>"], LLAMA_3)


def test_tools_before_the_last_question() -> None:
    talk = conversation("a?", "one", "b?", "two", tools=[WEATHER])
    # The first answer's prompt is not the whole's beginning, so the blank before it cannot be told to be the model's.
    check(talk, TOOLS_BEFORE_LAST, ["one<|im_end|>", " two<|im_end|>"])


def test_end_of_text_at_the_end_only() -> None:
    template = (
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% else %}{{ eos_token }}{% endif %}"
    )
    check(TALK, template, [" one", " two\n<|im_end|>"])


def test_without_a_generation_prompt_the_header_is_not_trained_on() -> None:
    template = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    check(TALK, template, ["one<|im_end|>", "two<|im_end|>"])
    of_header = conversation("a?", "<|im_start|>assistant\none", "b?", "<|im_start|>")
    check(of_header, template, ["<|im_start|>assistant\none<|im_end|>", "<|im_start|><|im_end|>"])


def test_a_conversation_that_begins_with_an_answer() -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    talk = conversation({"role": "assistant", "content": "Welcome."}, "a?", "one")
    check(talk, template, ["Welcome.<|im_end|>", "one<|im_end|>"])


def test_reasoning_has_a_key_of_its_own() -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}"
        "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    answer = {"role": "assistant", "content": "one", "reasoning_content": "so"}
    check(conversation("a?", answer, "b?", "two"), template, ["<think>so</think>one<|im_end|>", "two<|im_end|>"])


AROUND_HEADER = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}"
    "{{ '<|im_start|>assistant\n' + m.content + '<|im_end|>\n' }}{% endgeneration %}"
    "{% else %}{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WITHOUT_END = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize("template", [AROUND_HEADER, WITHOUT_END], ids=["too much", "too little"])
def test_generation_marks_are_mended(template: str) -> None:
    check(TALK, template, ["one<|im_end|>", "two<|im_end|>"])
    last = render(made(template), TALK, loss="completion")
    assert marked(last) == ["two<|im_end|>"]


def test_a_template_that_calls_itself_is_refused() -> None:
    """In a line; on 0.1 with a traceback."""
    template = "{% macro again(x) %}{{ again(x) }}{% endmacro %}{{ again(messages[0].content) }}"
    assert "it calls itself without end" in error(TALK, made(template))


def test_a_template_that_is_larger_than_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("transformers.utils.chat_template_utils.render_jinja_template", full)
    assert "its text is larger than the memory" in error(TALK, made("{{ messages[0].content }}"))


def test_a_template_that_hides_an_answer_is_refused() -> None:
    template = "{% for m in messages %}{% if loop.last or m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    expected = "data.jsonl:1: message 2 is rendered in a way that does not show exactly which text is its own"
    assert error(TALK, made(template)).startswith(expected)


def test_a_template_that_changes_an_answer_is_refused() -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + (m.content | upper if not loop.last else m.content[:1]) + '\n' }}"
        "{% endfor %}"
    )
    assert " is rendered in a way that does not show" in error(conversation("a?", "one", "b?", "two"), made(template))


# -------------------------------------------------------------------------------------------------------------- tokens


@pytest.mark.parametrize("answer", ["\nhi", "\n\nhi", " hi", "hi\n", "\n", ".\n\n", "hi  "])
@pytest.mark.parametrize("family", FAMILIES[:3], ids=lambda family: family.name)
def test_no_token_holds_a_part_of_the_prompt_and_of_the_answer(family: Any, answer: str) -> None:
    """A header that ends with a line end or a blank, and an answer that begins with one; no special tokens around."""
    for before, behind in (("### Response:\n", "\n### End\n"), ("answer: ", "."), ("x\n\n", "\n\n")):
        template = (
            "{% for m in messages %}{% if m.role == 'user' %}{{ m.content + " + repr(before) + " }}"
            "{% else %}{{ m.content + " + repr(behind) + " }}{% endif %}{% endfor %}"
        )
        of = made(template, family)
        document = render(of, conversation("a?", answer, "b?", answer))
        assert document.text == ("a?" + before + answer + behind + "b?" + before + answer + behind)
        expected = [answer + behind.rstrip()] * 2
        assert marked(document) == expected
        example = label(of, document)
        assert targets(of, example) == expected
        encoded = of("a?" + before, add_special_tokens=False)["input_ids"]
        assert example.input_ids[: len(encoded)].tolist() == encoded


# --------------------------------------------------------------------------------------------------- generation marks


def marks(text: str, behind: str) -> str:
    """A template with marks around this part of an answer's turn, and what stands behind them."""
    return (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
        f"{{% generation %}}{text}{{% endgeneration %}}{behind}"
        "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )


CALLS = "{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}"


def told(talk: Any, template: str, **options: Any) -> tuple[list[str], list[str]]:
    """What is trained on, and what is told."""
    counted: list[str] = []
    (stage,) = chat.ft_data_stages()
    (document,) = stage.make(chat.ChatOptions(**options), context(made(template), counted))(iter([talk]))
    assert isinstance(document, Document)
    return marked(document), counted


def test_marks_that_leave_out_a_part_are_told() -> None:
    talk = conversation("a?", {"role": "assistant", "content": "I look.", "tool_calls": [CALL]})
    whole = 'I look.{"name": "weather", "arguments": {"city": "Rome"}}<|im_end|>'
    assert told(talk, marks("{{ m.content }}" + CALLS, "")) == ([whole], [])
    left_out = ["answers of which the template's own {% generation %} marks leave out a part"]
    assert told(talk, marks("{{ m.content }}", CALLS))[1] == left_out


@pytest.mark.parametrize("inside", ["", "<|eom|>", "<|eom|><|im_end|>"])
def test_marks_that_end_within_an_end_of_two_tokens_are_mended(inside: str) -> None:
    family = Family(name="two", kind="gpt2", bos=None, eos="<|im_end|>", user=("", ""), header="", mark="",
                    others=("<|im_start|>", "<|eom|>"))  # fmt: skip
    behind = "<|eom|><|im_end|>".removeprefix(inside)
    template = marks("{{ m.content }}" + inside, behind).replace("{{ '<|im_end|>\n' }}", "")
    check(TALK, template, ["one<|eom|><|im_end|>", "two<|eom|><|im_end|>"], family)


def test_rows_that_leave_answers_out_keep_the_marks_of_the_others() -> None:
    talk = replace(TALK, untrained=frozenset({1}))
    assert told(talk, marks("{{ m.content }}", ""))[0] == ["two<|im_end|>"]
    assert told(talk, marks("{{ m.content }}", ""), loss="completion")[0] == ["two<|im_end|>"]
    assert told(replace(TALK, untrained=frozenset({3})), marks("{{ m.content }}", ""))[0] == ["one<|im_end|>"]


def test_a_part_that_is_cut_is_an_error() -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content[:9] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    assert marked(render(made(template), TALK)) == ["one<|im_end|>", "two<|im_end|>"]
    long = error(conversation("a question that is long", "one"), made(template))
    assert long.startswith("data.jsonl:1: message 1 (user): the chat template leaves out its content")
    assert "message 2 is rendered in a way" in error(conversation("a?", "one that is long"), made(template))


def test_rows_of_a_form_that_was_seen_are_read_as_others_are() -> None:
    """A row whose text is that of an earlier row with other contents is not rendered again, and gives the same."""
    talks = [
        conversation(*contents)
        for contents in (
            ("a?", "one", "b?", "two"),
            ("assistant", "user", "\n", "assistant\nuser"),
            ("<|im_start|>assistant\n", "<|im_end|>", "<|im_start|>user\n", "<|im_start|>assistant\n"),
            (" a?", "one ", "b? ", "\ttwo"),
            ("a?", "<think>\nso\n</think>\n\none", "b?", "<think>\nhm\n</think>\n\ntwo"),
            ("a?", "", "b?", ""),
            ("c?", "three", "d?", "four"),
        )
    ]
    of = made(THINKING)
    (stage,) = chat.ft_data_stages()
    together = list(stage.make(chat.ChatOptions(), context(of))(iter(talks)))
    assert together == [render(of, talk) for talk in talks]
