"""Every kind of bad conversation: one line that says where, what, and what to do; or skipped and counted."""

# ruff: noqa: E501 - an error is one line, and is read best as one

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fitune import DataError, DataStage, Origin, Row
from fitune_plugins.data import chat, detect, formats, plain_text
from support.templates import FAMILIES, context, tokenizer

STAGES: dict[str, DataStage[Any]] = {
    stage.name: stage for plugin in (formats, detect, plain_text) for stage in plugin.ft_data_stages()
}
BY_NAME = {family.name: family for family in FAMILIES}
USER, ASSISTANT = {"role": "user", "content": "1?"}, {"role": "assistant", "content": "1"}
SYSTEM = {"role": "system", "content": "Count."}
WANTED = '[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
ROLES = "Known: assistant, developer, function, system, tool, user"


def called(call: object) -> dict[str, Any]:
    return {"messages": [USER, {"role": "assistant", "tool_calls": call}]}


FORMATS: dict[str, tuple[str, dict[str, Any], str]] = {
    "no messages": ("messages", {"chat": []}, 'no column "messages". Known: chat. Name the column in the stage\'s table: messages = ...'),
    "a text": ("messages", {"messages": "hello"}, f'column "messages" is not a list of messages. It takes: {WANTED}'),
    "empty": ("messages", {"messages": []}, f'column "messages" is not a list of messages. It takes: {WANTED}'),
    "null": ("messages", {"messages": None}, f'column "messages" is not a list of messages. It takes: {WANTED}'),
    "texts": ("messages", {"messages": ["hi"]}, "message 1 is not an object with a role and a content"),
    "no role": ("messages", {"messages": [USER, {"from": "gpt", "value": "1"}]}, "message 2 is not an object with a role and a content. It has: from, value"),
    "role misspelled": ("messages", {"messages": [USER, {"role": "assitant", "content": "1"}]}, 'message 2 has the role "assitant". Did you mean "assistant"?'),
    "role of another world": ("messages", {"messages": [{"role": "x", "content": "1"}]}, f'message 1 has the role "x". {ROLES}'),
    "content null": ("messages", {"messages": [{"role": "user", "content": None}]}, 'message 1 (user): "content" is null, not a text'),
    "content a number": ("messages", {"messages": [USER, {"role": "assistant", "content": 1}]}, 'message 2 (assistant): "content" is 1, not a text'),
    "content long": ("messages", {"messages": [{"role": "user", "content": {"text": "x" * 99}}]}, 'message 1 (user): "content" is {"text": "' + "x" * 46 + " ..., not a text"),
    "image": ("messages", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, 'message 1 (user): "content" has a part "image_url". Leave it out: text alone is trained on'),
    "half a character": ("messages", {"messages": [USER, {"role": "assistant", "content": "1 \ud83d"}]}, 'message 2 (assistant): "content" holds half a character (at 2). Leave it out'),
    "no answer": ("messages", {"messages": [SYSTEM, USER]}, 'no message has the role "assistant", so there is nothing to train on. Roles: system, user'),
    "calls no list": ("messages", called({"name": "f"}), 'message 2 (assistant): "tool_calls" is {"name": "f"}, not a list'),
    "call without a name": ("messages", called([{"function": {}}]), 'message 2 (assistant): a tool call is {"function": {}}. It takes: {"function": {"name": "...", "arguments": {}}}'),
    "arguments no JSON": ("messages", called([{"function": {"name": "f", "arguments": "{"}}]), 'message 2 (assistant): the arguments of "f" are not JSON: "{". Write an object'),
    "arguments no object": ("messages", called([{"function": {"name": "f", "arguments": "[1]"}}]), 'message 2 (assistant): the arguments of "f" are [1]. Write an object'),
    "tools no JSON": ("messages", {"messages": [USER, ASSISTANT], "tools": "[{"}, 'column "tools" is not JSON: "[{". Write a list of tools'),
    "tools no list": ("messages", {"messages": [USER, ASSISTANT], "tools": {"name": "f"}}, 'column "tools" is {"name": "f"}. Write a list of tools, each an object'),
    "sharegpt a text": ("sharegpt", {"conversations": "hi"}, 'column "conversations" is not a list of messages. It takes: [{"from": "human", "value": "..."}, ...]'),
    "sharegpt no speaker": ("sharegpt", {"conversations": [{"value": "hi"}]}, 'message 1 is not an object with "from" and "value". It has: value'),
    "sharegpt stranger": ("sharegpt", {"conversations": [{"from": "humna", "value": "hi"}]}, 'message 1 is from "humna". Did you mean "human"?'),
    "sharegpt no value": ("sharegpt", {"conversations": [{"from": "gpt"}]}, 'message 1 (gpt): "value" is null, not a text'),
    "sharegpt call no JSON": ("sharegpt", {"conversations": [{"from": "function_call", "value": "f()"}]}, 'message 1 (function_call) is not JSON: "f()". Write {"name": "...", "arguments": {}}'),
    "sharegpt no answer": ("sharegpt", {"conversations": [{"from": "human", "value": "hi"}]}, 'no message has the role "assistant", so there is nothing to train on. Roles: user'),
    "alpaca no output": ("alpaca", {"instruction": "Add."}, 'no column "output". Known: instruction. Name the column in the stage\'s table: output = ...'),
    "alpaca output null": ("alpaca", {"instruction": "Add.", "output": None}, 'column "output" is null, not a text'),
    "alpaca input a list": ("alpaca", {"instruction": "Add.", "input": [2, 3], "output": "5"}, 'column "input" is [2, 3], not a text'),
    "alpaca history": ("alpaca", {"instruction": "Add.", "output": "5", "history": ["hi"]}, 'column "history" has "hi". It takes pairs: [instruction, output]'),
    "no completion": ("prompt-completion", {"prompt": "1?", "completions": "1"}, 'no column "completion". Did you mean "completions"? Name the column in the stage\'s table: completion = ...'),
    "completion a number": ("prompt-completion", {"prompt": "1?", "completion": 1}, 'column "completion" is 1, not a text'),
    "completion of the user": ("prompt-completion", {"prompt": "1?", "completion": [USER]}, 'no message has the role "assistant", so there is nothing to train on. Roles: user'),
    "unknown columns": ("detect", {"question": "1?", "answer": "1"}, 'the format cannot be told by its columns: question, answer. Name the format and its columns: [[data.stage]] use = "prompt-completion", prompt = "question", completion = "answer"'),
    "column misspelled": ("detect", {"mesages": []}, 'the format cannot be told by its columns: mesages. Is "mesages" to be "messages"? Name a format and its columns in a [[data.stage]] before "chat"'),
    "text alone": ("detect", {"text": "hello"}, 'the format cannot be told by its columns: text. To train on whole texts, add a [[data.stage]] with use = "plain-text" in place of "chat"'),
    "plain text empty": ("plain-text", {"text": " \n"}, 'column "text" is empty. Leave the row out'),
    "plain text a list": ("plain-text", {"text": ["a"]}, 'column "text" is ["a"], not a text'),
}  # fmt: skip

ALTERNATE = "Join messages of one role that follow each other"
TEMPLATES: dict[str, tuple[str, list[dict[str, Any]], str]] = {
    "gemma system": ("gemma", [SYSTEM, USER, ASSISTANT], 'the chat template "gemma" refuses it: Gemma has no system role. Leave its system message out, or put that text in front of the first question'),
    "gemma alternation": ("gemma", [USER, USER, ASSISTANT], f'the chat template "gemma" refuses it: Gemma takes turns of user and assistant that alternate. {ALTERNATE}'),
    "phi-3 tool": ("phi-3", [USER, {"role": "tool", "content": "x"}, ASSISTANT], 'the chat template "phi-3" refuses it: Phi-3 knows the roles system, user and assistant. Use a template that knows tools, or leave rows with tool calls out'),
    "zephyr tool": ("zephyr", [USER, {"role": "tool", "content": "x"}, ASSISTANT], 'the chat template "zephyr" refuses it: Zephyr knows the roles system, user and assistant. Use a template that knows tools, or leave rows with tool calls out'),
}  # fmt: skip


def run(stage: DataStage[Any], given: list[Any], *, skip: bool = False, family: str = "chatml", **options: Any) -> Any:
    counted: list[str] = []
    made = stage.make(stage.options(**options), context(tokenizer(BY_NAME[family]), counted, skip=skip))
    return list(made(iter(given))), counted


@pytest.mark.parametrize("name", FORMATS)
def test_format(name: str) -> None:
    stage, values, expected = FORMATS[name]
    given = [Row(values=values, origin=Origin(file="data.jsonl", row=7))]
    with pytest.raises(DataError) as found:
        run(STAGES[stage], given)
    assert found.value.lines == (f"data.jsonl:7: {expected}",)
    assert run(STAGES[stage], given, skip=True) == ([], ["bad rows skipped"])


@pytest.mark.parametrize("name", TEMPLATES)
def test_template(name: str) -> None:
    template, messages, expected = TEMPLATES[name]
    row = Row(values={"messages": messages}, origin=Origin(file="data.jsonl", row=7))
    (stage,) = chat.ft_data_stages()
    talks, _ = run(STAGES["messages"], [row])
    with pytest.raises(DataError) as found:
        run(stage, talks, family=template, template=template)
    assert found.value.lines == (f"data.jsonl:7: {expected}",)
    assert run(stage, talks, skip=True, family=template, template=template) == ([], ["bad rows skipped"])


@pytest.mark.parametrize("template", ["llama-2", "mistral"])
def test_turns_that_do_not_alternate(template: str) -> None:
    (stage,) = chat.ft_data_stages()
    row = Row(values={"messages": [USER, ASSISTANT, ASSISTANT]}, origin=Origin(file="data.jsonl", row=7))
    talks, _ = run(STAGES["messages"], [row])
    with pytest.raises(DataError) as found:
        run(stage, talks, family=template, template=template)
    assert found.value.message.startswith(f'data.jsonl:7: the chat template "{template}" refuses it: ')
    assert found.value.message.endswith(f"at most a system message before. {ALTERNATE}")


def test_good_rows_around_a_bad_one_are_kept() -> None:
    def row(number: int, values: dict[str, Any]) -> Row:
        return Row(values=values, origin=Origin(file="data.jsonl", row=number))

    good: Callable[[int], Row] = lambda number: row(number, {"messages": [USER, ASSISTANT]})  # noqa: E731
    talks, counted = run(STAGES["messages"], [good(1), row(2, {"messages": [USER]}), good(3)], skip=True)
    assert [talk.origin.row for talk in talks] == [1, 3]
    assert counted == ["bad rows skipped"]
