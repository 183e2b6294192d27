"""Formats are told by columns, each file's by itself; what is of none says what it is, and what to write."""

# ruff: noqa: E501 - an error is one line, and is read best as one

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fitune import Conversation, DataError, Origin, Row
from fitune_plugins.data import detect
from support.prepared import RECIPE, prepared, write
from support.templates import FAMILIES, context, tokenizer

(STAGE,) = detect.ft_data_stages()
OPENAI: dict[str, Any] = {"messages": [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "1"}]}
SHAREGPT: dict[str, Any] = {"conversations": [{"from": "human", "value": "2?"}, {"from": "gpt", "value": "2"}]}
ALPACA: dict[str, Any] = {"instruction": "3?", "output": "3"}


def read(rows: list[tuple[str, dict[str, Any]]], counted: list[str] | None = None) -> list[Conversation]:
    made = [Row(values=values, origin=Origin(file=file, row=number)) for number, (file, values) in enumerate(rows, 1)]
    return list(STAGE.make(STAGE.options(), context(tokenizer(FAMILIES[0]), counted))(iter(made)))


def error(**values: Any) -> str:
    with pytest.raises(DataError) as found:
        read([("data.jsonl", values)])
    return found.value.message.removeprefix("data.jsonl:1: ")


def test_each_file_has_its_own_format() -> None:
    counted: list[str] = []
    rows = [("a", OPENAI), ("b", SHAREGPT), ("c", ALPACA), ("a", OPENAI), ("b", SHAREGPT)]
    assert [talk.messages[0]["content"] for talk in read(rows, counted)] == ["1?", "2?", "3?", "1?", "2?"]
    assert [what.removeprefix("rows read as ") for what in counted] == [
        "messages", "sharegpt", "alpaca", "messages", "sharegpt"
    ]  # fmt: skip
    with pytest.raises(DataError, match=r'b:3: no column "conversations"'):
        read([("a", OPENAI), ("b", SHAREGPT), ("b", OPENAI)])


def test_sources_of_different_formats_in_one_recipe(tmp_path: Path) -> None:
    more = '\n[[data.source]]\nuse = "json"\npath = "more.json"\n\n[[data.source]]\nuse = "csv"\npath = "more.csv"\n'
    path = write(tmp_path, json.dumps(SHAREGPT) + "\n", RECIPE + more)
    (tmp_path / "more.json").write_text(json.dumps([ALPACA, ALPACA]), encoding="utf-8")
    (tmp_path / "more.csv").write_text("prompt,completion\n4?,4\n", encoding="utf-8")
    data = prepared(path)
    assert len(data.rows) == 4
    assert data.notes == [
        ("rows read as sharegpt", 1), ("rows read as alpaca", 2), ("rows read as prompt-completion", 1)
    ]  # fmt: skip


@pytest.mark.parametrize("values", [
    {"messages": json.dumps(OPENAI["messages"])},
    {"conversations": json.dumps(OPENAI["messages"])},
    {"conversations": json.dumps([{"from": "human", "value": "1?"}, {"from": "gpt", "value": "1"}])},
])  # fmt: skip
def test_messages_may_be_json(values: dict[str, Any]) -> None:
    (talk,) = read([("a", values)])
    assert [dict(turn) for turn in talk.messages] == OPENAI["messages"]


def test_an_alpaca_history_may_be_json() -> None:
    (talk,) = read([("a", {**ALPACA, "history": '[["1?", "1"]]'})])
    assert [turn["content"] for turn in talk.messages] == ["1?", "1", "3?", "3"]


def test_json_that_is_cut_off() -> None:
    assert error(messages='[{"role": "user"') == (
        'column "messages" is not JSON: "[{\\"role\\": \\"user\\"". Write a list of messages'
    )
    assert error(conversations="[{") == 'column "conversations" is not JSON: "[{". Write a list of messages'


HINT = "the format cannot be told by its columns: "
NAMED = "Name the format and its columns: [[data.stage]] use = "


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ("prompt, response", NAMED + '"prompt-completion", completion = "response"'),
        ("instruction, context, response, category", NAMED + '"alpaca", input = "context", output = "response"'),
        ("instruction, response", NAMED + '"alpaca", output = "response"'),
        ("query, answer", NAMED + '"prompt-completion", prompt = "query", completion = "answer"'),
        ("input, output", NAMED + '"prompt-completion", prompt = "input", completion = "output"'),
        ("prompt", 'Name a format and its columns: [[data.stage]] use = "prompt-completion", prompt = ..., completion = ...'),
        ("prompt, score", 'Name a format and its columns: [[data.stage]] use = "prompt-completion", prompt = ..., completion = ...'),
        ("promt", 'Is "promt" to be "prompt"? Name a format and its columns in a [[data.stage]] before "chat"'),
        ("output, instructions", 'Is "instructions" to be "instruction"? Name a format and its columns in a [[data.stage]] before "chat"'),
    ],
)  # fmt: skip
def test_hints(columns: str, expected: str) -> None:
    assert error(**dict.fromkeys(columns.split(", "), "x")) == f"{HINT}{columns}. {expected}"


CHOSEN = (
    'preferences (chosen, rejected), but the objective learns from every answer. Compare them ([objective] use = "dpo"), '
    'or train on the chosen ones alone: name a format and its columns in a [[data.stage]] before "chat"'
)


@pytest.mark.parametrize(
    ("values", "stage"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, ': use = "prompt-completion", completion = "chosen"'),
        ({"chosen": OPENAI["messages"], "rejected": []}, ': use = "messages", messages = "chosen"'),
        ({"prompt": "q", "chosen": OPENAI["messages"], "rejected": []}, ': use = "messages", messages = "chosen"'),
        ({"chosen": "Human: q Assistant: a", "rejected": "b"}, ""),
        ({**SHAREGPT, "chosen": {"from": "gpt"}, "rejected": {"from": "gpt"}}, ""),
    ],
)
def test_preferences_say_what_they_are(values: dict[str, Any], stage: str) -> None:
    assert error(**values) == CHOSEN + stage


def test_preferences_with_the_chosen_talk_beside_them_are_messages() -> None:
    (talk,) = read([("a", {**OPENAI, "prompt": "1?", "chosen": OPENAI["messages"], "rejected": []})])
    assert talk.messages[1]["content"] == "1"


def test_judged_answers_say_what_they_are() -> None:
    assert error(prompt="q", completion="a", label=False) == (
        'judged answers ("label" says whether an answer is good), but the objective learns from every answer. Use '
        '[objective] use = "kto", or leave out the bad ones, and name the format: [[data.stage]] use = '
        '"prompt-completion"'
    )
    assert len(read([("a", {"prompt": "q", "completion": "a", "label": "positive"})])) == 1
