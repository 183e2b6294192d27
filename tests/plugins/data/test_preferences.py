"""Every form of preferences is told by its columns, stated, and read as the same prompt with two answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from fitune import Conversation, Origin, Preference, Row
from fitune.plugin.dataflow import Takes
from fitune_plugins.data import preferences
from support.templates import FAMILIES, context, tokenizer

(STAGE,) = preferences.ft_data_stages()

Message = dict[str, Any]


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str, **more: Any) -> Message:
    return {"role": "assistant", "content": content, **more}


def read(
    *rows: Mapping[str, Any], takes: Takes = "pairs", counted: list[str] | None = None, **options: Any
) -> list[Preference]:

    made = [Row(values=values, origin=Origin(file="a.jsonl", row=number)) for number, values in enumerate(rows, 1)]
    given = replace(context(tokenizer(FAMILIES[0]), counted), takes=takes)
    return list(STAGE.make(STAGE.options(**options), given)(iter(made)))


def said(side: Conversation | None) -> tuple[list[Message], list[Message]]:
    assert side is not None
    messages = [dict(turn) for turn in side.messages]
    return messages[: side.asked], messages[side.asked :]


Q, GOOD, BAD = [user("Q?")], [assistant("good")], [assistant("bad")]
TALK = [user("Hi"), assistant("Yes?"), user("Q?")]
HH = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Q?\n\nAssistant: "
SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes?"}, {"from": "human", "value": "Q?"}]
SYSTEM = {"role": "system", "content": "S"}
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}]

FORMS: dict[str, tuple[dict[str, Any], list[Message], str]] = {
    "texts": ({"prompt": "Q?", "chosen": "good", "rejected": "bad"}, Q, "prompt, chosen, rejected"),
    "texts that repeat the prompt": (
        {"prompt": "Q?\n", "chosen": "Q?\ngood", "rejected": "Q?\nbad"},
        [user("Q?\n")],
        "prompt, chosen, rejected",
    ),
    "messages behind a prompt": ({"prompt": TALK, "chosen": GOOD, "rejected": BAD}, TALK, "prompt, chosen, rejected"),
    "messages with their prompt": (
        {"chosen": TALK + GOOD, "rejected": TALK + BAD},
        TALK,
        "chosen, rejected",
    ),
    "UltraFeedback": (
        {
            "prompt": "Q?", "prompt_id": "x", "chosen": Q + GOOD, "rejected": Q + BAD, "messages": Q + GOOD,
            "score_chosen": 8.0, "score_rejected": 5.5,
        },
        Q,
        "prompt, chosen, rejected",
    ),
    "HH-RLHF": ({"chosen": HH + "good", "rejected": HH + "bad"}, TALK, "chosen, rejected"),
    "HH-RLHF with a prompt": (
        {"prompt": HH, "chosen": "good", "rejected": "bad"},
        TALK,
        "prompt, chosen, rejected",
    ),
    "HH-RLHF, whole, with a prompt": (
        {"prompt": HH, "chosen": HH + "good", "rejected": HH + "bad"},
        TALK,
        "prompt, chosen, rejected",
    ),
    "Orca": (
        {"system": "S", "question": "Q?", "chosen": "good", "rejected": "bad"},
        [SYSTEM, *Q],
        "question, chosen, rejected",
    ),
    "Orca without a system message": (
        {"system": "", "input": "Q?", "chosen": "good", "rejected": "bad"},
        Q,
        "input, chosen, rejected",
    ),
    "Alpaca": (
        {"instruction": "Q?", "input": "data", "chosen": "good", "rejected": "bad"},
        [user("Q?\ndata")],
        "instruction, chosen, rejected",
    ),
    "ShareGPT": (
        {
            "conversations": SHAREGPT,
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
        TALK,
        "conversations, chosen, rejected",
    ),
    "messages and one answer each": (
        {"messages": TALK, "chosen": GOOD[0], "rejected": BAD[0]},
        TALK,
        "messages, chosen, rejected",
    ),
    "OpenAI": (
        {"input": {"messages": Q, "tools": []}, "preferred_output": GOOD, "non_preferred_output": BAD},
        Q,
        "input, preferred_output, non_preferred_output",
    ),
    "StackExchange": (
        {"question": "Q?", "response_j": "good", "response_k": "bad"},
        Q,
        "question, response_j, response_k",
    ),
    "JSON texts": (
        {"prompt": json.dumps(TALK), "chosen": json.dumps(GOOD), "rejected": json.dumps(BAD)},
        TALK,
        "prompt, chosen, rejected",
    ),
    "JSON texts of whole conversations": (
        {"chosen": json.dumps(TALK + GOOD), "rejected": json.dumps(TALK + BAD)},
        TALK,
        "chosen, rejected",
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form(form: str) -> None:
    values, asked, stated = FORMS[form]
    counted: list[str] = []
    (found,) = read(values, counted=counted)
    assert said(found.chosen) == (asked, GOOD)
    assert said(found.rejected) == (asked, BAD)
    assert not found.as_text
    assert counted == [f"rows read as pairs ({stated})"]


def test_texts_without_a_prompt_share_their_beginning() -> None:
    (found,) = read({"chosen": "The sky is blue.", "rejected": "The sky is black."})
    assert found.as_text
    assert said(found.chosen) == ([user("The sky is")], [assistant(" blue.")])
    assert said(found.rejected) == ([user("The sky is")], [assistant(" black.")])


def test_answers_that_are_json_stay_texts() -> None:
    values = {"prompt": "Q?", "chosen": '{"a": 1}', "rejected": '[{"b": "c"}]'}
    (found,) = read(values)
    assert [said(side)[1][0]["content"] for side in found.sides] == ['{"a": 1}', '[{"b": "c"}]']


def test_columns_of_other_names() -> None:
    values = {"ask": "Q?", "win": "good", "lose": "bad", "who": "S"}
    (found,) = read(values, prompt="ask", chosen="win", rejected="lose", system="who")
    assert said(found.chosen) == ([SYSTEM, *Q], GOOD)
    assert said(found.rejected) == ([SYSTEM, *Q], BAD)


def test_tools_are_of_both_sides() -> None:
    answer = assistant("", tool_calls=[{"function": {"name": "f", "arguments": "{}"}}])
    for values in (
        {"prompt": Q, "chosen": [answer], "rejected": BAD, "tools": TOOLS},
        {"input": {"messages": Q, "tools": TOOLS}, "preferred_output": [answer], "non_preferred_output": BAD},
    ):
        (found,) = read(values)
        assert [len(side.tools) for side in found.sides] == [1, 1]
        assert said(found.chosen)[1][0]["tool_calls"][0]["function"]["name"] == "f"


def test_each_file_has_its_own_form() -> None:

    forms = [FORMS[name][0] for name in ("texts", "HH-RLHF", "Orca")]
    rows = [Row(values=values, origin=Origin(file=str(at % 3), row=1)) for at, values in enumerate(forms * 2)]
    counted: list[str] = []
    given = replace(context(tokenizer(FAMILIES[0]), counted), takes="pairs")
    assert len(list(STAGE.make(STAGE.options(), given)(iter(rows)))) == 6
    assert len(set(counted)) == 3


JUDGED: dict[str, tuple[dict[str, Any], list[Message], bool, str]] = {
    "TRL": ({"prompt": "Q?", "completion": "good", "label": True}, Q, True, "prompt, completion, label"),
    "TRL, as messages": (
        {"prompt": TALK, "completion": GOOD, "label": False},
        TALK,
        False,
        "prompt, completion, label",
    ),
    "numbers": ({"prompt": "Q?", "completion": "good", "label": 0}, Q, False, "prompt, completion, label"),
    "CSV": ({"prompt": "Q?", "completion": "good", "label": "True"}, Q, True, "prompt, completion, label"),
    "LLaMA-Factory": ({"messages": TALK + GOOD, "kto_tag": True}, TALK, True, "messages, kto_tag"),
    "ShareGPT": (
        {"conversations": [*SHAREGPT, {"from": "gpt", "value": "good"}], "label": False},
        TALK,
        False,
        "conversations, label",
    ),
    "other columns": ({"query": "Q?", "response": "good", "desirable": True}, Q, True, "query, response, desirable"),
}


@pytest.mark.parametrize("form", JUDGED)
def test_every_form_of_judged_answers(form: str) -> None:
    values, asked, good, stated = JUDGED[form]
    counted: list[str] = []
    (found,) = read(values, takes="labelled", counted=counted)
    assert (found.chosen is not None, found.rejected is not None) == (good, not good)
    assert said(found.sides[0]) == (asked, GOOD)
    assert counted == [f"rows read as judged answers ({stated})"]


def test_pairs_are_judged_answers_too() -> None:
    (found,) = read(FORMS["texts"][0], takes="labelled")
    assert len(found.sides) == 2


def test_what_a_row_leaves_out_is_obeyed_or_passed_over() -> None:
    long = [assistant("first", weight=0), user("go on"), assistant("good")]
    (found,) = read({"prompt": Q, "chosen": long, "rejected": BAD})
    assert found.chosen is not None
    assert found.chosen.untrained == {1}
    (found,) = read({"prompt": Q, "chosen": long, "rejected": BAD}, loss_keys=False)
    assert found.chosen is not None
    assert found.chosen.untrained == frozenset()


LEFT_OUT: dict[str, tuple[dict[str, Any], str]] = {
    "equal texts": ({"prompt": "Q?", "chosen": "a", "rejected": "a"}, "chosen and rejected are equal"),
    "equal conversations": ({"chosen": TALK + GOOD, "rejected": TALK + GOOD}, "chosen and rejected are equal"),
    "equal dialogues": ({"chosen": HH + "good", "rejected": HH + "good"}, "chosen and rejected are equal"),
    "equal texts without a prompt": ({"chosen": "a b", "rejected": "a b"}, "chosen and rejected are equal"),
    "equal but for a weight": (
        {"prompt": Q, "chosen": [assistant("a", weight=1)], "rejected": [assistant("a", weight=0)]},
        "chosen and rejected are equal",
    ),
    "empty answer": ({"prompt": "Q?", "chosen": "a", "rejected": "  "}, "an answer is empty"),
    "empty message": ({"prompt": Q, "chosen": [assistant("")], "rejected": BAD}, "an answer is empty"),
    "dialogue without an answer": ({"chosen": HH, "rejected": HH + "bad"}, "an answer is empty"),
    "answer not to be trained on": (
        {"prompt": Q, "chosen": [assistant("a", weight=0)], "rejected": BAD},
        "they say themselves that nothing of them is trained on",
    ),
    "row not to be trained on": (
        {"prompt": "Q?", "chosen": "a", "rejected": "b", "train": False},
        "they say themselves that nothing of them is trained on",
    ),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_rows_that_teach_nothing_are_counted(name: str) -> None:
    values, why = LEFT_OUT[name]
    counted: list[str] = []
    assert read(values, counted=counted) == []
    assert counted == [f"rows left out: {why}"]
