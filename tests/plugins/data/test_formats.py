"""Rows of every known form become the same conversations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from fitune import Conversation, DataStage, Document, Origin, Row
from fitune.plugin.options import parse
from fitune_plugins.data import detect, formats, plain_text
from support.templates import FAMILIES, context, label, targets, tokenizer

STAGES: dict[str, DataStage[Any]] = {
    stage.name: stage for plugin in (formats, detect, plain_text) for stage in plugin.ft_data_stages()
}
CHATML = FAMILIES[0]


def rows(*values: dict[str, Any]) -> list[Row]:
    return [Row(values=value, origin=Origin(file="data.jsonl", row=number)) for number, value in enumerate(values, 1)]


def read(stage: str, *values: dict[str, Any], counted: list[str] | None = None, **options: Any) -> list[Any]:
    chosen, problems = parse(STAGES[stage].options, options)
    assert not problems
    return list(STAGES[stage].make(chosen, context(tokenizer(CHATML), counted))(iter(rows(*values))))


def said(found: Sequence[Conversation]) -> list[list[tuple[str, str]]]:
    return [[(turn["role"], turn["content"]) for turn in talk.messages] for talk in found]


ASKED = [("user", "2 + 2?"), ("assistant", "4")]
WITH_SYSTEM = [("system", "Count."), *ASKED]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt"}


def openai(turns: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return [{"role": role, "content": text} for role, text in turns]


def openai_in_parts(turns: list[tuple[str, str]]) -> list[dict[str, Any]]:
    names = {"system": "developer"}
    return [
        {"role": names.get(role, role), "content": [{"type": "text", "text": part} for part in (text[:1], text[1:])]}
        for role, text in turns
    ]


def sharegpt(turns: list[tuple[str, str]], who: str = "from", what: str = "value") -> list[dict[str, Any]]:
    return [{who: SPEAKERS[role], what: text} for role, text in turns]


@pytest.mark.parametrize(
    ("stage", "values"),
    [
        ("messages", {"messages": openai(WITH_SYSTEM)}),
        ("messages", {"messages": openai_in_parts(WITH_SYSTEM)}),
        ("sharegpt", {"conversations": sharegpt(WITH_SYSTEM)}),
        ("sharegpt", {"system": "Count.", "conversations": sharegpt(ASKED)}),
        ("alpaca", {"instruction": "2 + 2?", "input": "", "output": "4", "system": "Count."}),
        ("prompt-completion", {"system": "Count.", "prompt": "2 + 2?", "completion": "4"}),
        ("prompt-completion", {"prompt": openai(WITH_SYSTEM[:2]), "completion": openai(WITH_SYSTEM[2:])}),
    ],
)
def test_one_conversation_in_every_form(stage: str, values: dict[str, Any]) -> None:
    assert said(read(stage, values)) == [WITH_SYSTEM]
    counted: list[str] = []
    assert said(read("detect", values, counted=counted)) == [WITH_SYSTEM]
    assert counted == [f"rows read as {stage}"]


@pytest.mark.parametrize(
    ("stage", "options", "values"),
    [
        ("messages", {"messages": "chat"}, {"chat": openai(ASKED)}),
        (
            "sharegpt",
            {"conversations": "talk", "role": "who", "value": "what"},
            {"talk": sharegpt(ASKED, "who", "what")},
        ),
        ("alpaca", {"instruction": "q", "output": "a"}, {"q": "2 + 2?", "a": "4"}),
        ("prompt-completion", {"prompt": "question", "completion": "answer"}, {"question": "2 + 2?", "answer": "4"}),
    ],
)
def test_columns_have_the_names_that_the_recipe_gives(
    stage: str, options: dict[str, Any], values: dict[str, Any]
) -> None:
    assert said(read(stage, values, **options)) == [ASKED]


def test_alpaca_has_input_and_history() -> None:
    values = {"instruction": "Add.", "input": "2, 3", "output": "5", "history": [["1 + 1?", "2"]]}
    expected = [("user", "1 + 1?"), ("assistant", "2"), ("user", "Add.\n2, 3"), ("assistant", "5")]
    assert said(read("alpaca", values)) == [expected]


def test_messages_under_the_name_conversations_are_messages() -> None:
    counted: list[str] = []
    values = {"conversations": openai(ASKED)}
    assert said(read("detect", values, values, counted=counted)) == [ASKED, ASKED]
    assert counted == ['rows read as messages, in the column "conversations"'] * 2


def test_tool_calls_have_arguments_as_objects_and_no_nulls() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    messages = [
        {"role": "user", "content": "Rome?", "tool_calls": None},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "sunny", "tool_call_id": "1"},
        {"role": "assistant", "content": "Sunny."},
    ]
    for tools in ([WEATHER], json.dumps([WEATHER])):
        (talk,) = read("messages", {"messages": messages, "tools": tools})
        assert talk.tools == (WEATHER,)
        called = {**call, "function": {"name": "weather", "arguments": {"city": "Rome"}}}
        assert talk.messages == (
            {"role": "user", "content": "Rome?"},
            {"role": "assistant", "content": "", "tool_calls": [called]},
            {"role": "tool", "content": "sunny", "tool_call_id": "1"},
            {"role": "assistant", "content": "Sunny."},
        )


def test_arguments_keep_the_text_that_they_were() -> None:
    for given, written in (
        ('{"city":"Rome"}', '{"city":"Rome"}'),
        ({"city": "Zürich"}, '{"city": "Zürich"}'),
        ("", "{}"),
        (None, "{}"),
    ):
        call = {"function": {"name": "weather", "arguments": given}}
        (talk,) = read("messages", {"messages": [*openai(ASKED[:1]), {"role": "assistant", "tool_calls": [call]}]})
        assert talk.messages[1]["tool_calls"][0]["function"]["arguments"].written == written


def test_calls_may_be_json() -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    (talk,) = read(
        "messages", {"messages": [*openai(ASKED[:1]), {"role": "assistant", "tool_calls": json.dumps([call])}]}
    )
    assert talk.messages[1] == {"role": "assistant", "content": "", "tool_calls": [call]}
    (talk,) = read(
        "messages", {"messages": [*openai(ASKED), {"role": "assistant", "content": "!", "tool_calls": "[]"}]}
    )
    assert talk.messages[2] == {"role": "assistant", "content": "!"}


def test_null_in_json_is_the_rows_own_word_in_arguments_alone() -> None:
    """Elsewhere in calls and in descriptions of tools it stands for what is not there, but where it is a value."""
    call = {"id": None, "type": "function", "function": {"name": "f", "arguments": {"zone": None, "in": {"a": None}}}}
    unit = {"type": "string", "description": None, "default": None, "enum": ["C", None]}
    tool = {"function": {"name": "f", "strict": None, "parameters": {"properties": {"unit": unit, "zone": None}}}}
    (talk,) = read(
        "messages", {"messages": [*openai(ASKED[:1]), {"role": "assistant", "tool_calls": [call]}], "tools": [tool]}
    )
    (called,) = talk.messages[1]["tool_calls"]
    assert called == {"type": "function", "function": call["function"]}
    stated = {"unit": {"type": "string", "default": None, "enum": ["C", None]}}
    assert talk.tools == ({"function": {"name": "f", "parameters": {"properties": stated}}},)


def test_what_else_a_sharegpt_message_says_is_kept() -> None:
    talk = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!", "reasoning_content": "Hm.", "name": None}]
    (found,) = read("sharegpt", {"conversations": talk})
    assert found.messages[1] == {"role": "assistant", "content": "!", "reasoning_content": "Hm."}


def test_earlier_forms_of_calls_are_tool_calls() -> None:
    function = {"name": "weather", "arguments": {"city": "Rome"}}
    asked = {"role": "user", "content": "?"}
    called = {"role": "assistant", "function_call": function}
    earlier = [asked, called, {"role": "function", "content": "sunny"}]
    spoken = [("human", "?"), ("function_call", json.dumps(function)), ("observation", "sunny")]
    talk_of = [{"from": who, "value": what} for who, what in spoken]
    for stage, values in (("messages", {"messages": earlier}), ("sharegpt", {"conversations": talk_of})):
        (talk,) = read(stage, values)
        assert talk.messages[1]["tool_calls"] == [{"type": "function", "function": function}]
        assert [turn["role"] for turn in talk.messages] == ["user", "assistant", "tool"]


def test_a_row_that_does_not_fit_the_format_of_the_first_is_a_bad_row() -> None:
    counted: list[str] = []
    values: list[dict[str, Any]] = [
        {"prompt": "a", "completion": "b"},
        {"messages": []},
        {"prompt": "c", "completion": "d"},
    ]
    stage = STAGES["detect"]
    found = list(stage.make(stage.options(), context(tokenizer(CHATML), counted, skip=True))(iter(rows(*values))))
    assert [talk.origin.row for talk in found] == [1, 3]
    assert counted == ["rows read as prompt-completion", "bad rows skipped", "rows read as prompt-completion"]


def test_plain_text_is_trained_on_as_a_whole_with_its_end() -> None:
    made = tokenizer(CHATML)
    (document,) = read("plain-text", {"text": " hello\n"})
    assert document.trained == ((0, len(" hello\n<|im_end|>")),)
    assert targets(made, label(made, document)) == [" hello\n<|im_end|>"]
    (document,) = read("plain-text", {"body": "hello"}, text="body", end=False)
    assert targets(made, label(made, document)) == ["hello"]


def test_tokens_that_the_tokenizer_adds_to_plain_text_are_kept() -> None:
    from tokenizers import processors

    made = tokenizer(FAMILIES[1])
    ids = {token: made.convert_tokens_to_ids(token) for token in ("<s>", "</s>")}
    backend: Any = made
    origin = Origin(file="f", row=1)
    document = Document(text="hi", trained=((0, 2),), origin=origin, special=False)
    before = backend.backend_tokenizer.post_processor
    try:
        template = processors.TemplateProcessing("<s> $A </s>", special_tokens=list(ids.items()))
        backend.backend_tokenizer.post_processor = template
        example = label(made, document)
        assert example.input_ids.tolist() == made("hi")["input_ids"]
        assert (example.input_ids[0], example.input_ids[-1]) == (ids["<s>"], ids["</s>"])
        assert targets(made, example) == [" hi</s>"]  # Llama's tokenizer puts a blank before every text
        assert example.labels[0] == -100
    finally:
        backend.backend_tokenizer.post_processor = before
