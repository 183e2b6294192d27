"""Every kind of bad preferences: one line that names row, fault and way out; skipped and counted where that is asked."""

# ruff: noqa: E501 - an error is one line, and is read best as one

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fitune import DataError, RecipeError
from support.compared import LABELLED, PAIRS, compared, lines
from support.prepared import RECIPE, prepared, write

Row = Mapping[str, Any]


def user(content: object) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: object) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


Q, A, B = [user("Q?")], [assistant("a")], [assistant("b")]
FINE: Row = {"prompt": "Q?", "chosen": "a", "rejected": "b"}
JUDGED: Row = {"prompt": "Q?", "completion": "a", "label": True}


@dataclass(frozen=True)
class Case:
    """Rows of which the last is bad, and what is said of it behind its origin."""

    rows: tuple[Row, ...]
    error: str
    recipe: str = PAIRS


def case(error: str, *rows: Row, recipe: str = PAIRS) -> Case:
    return Case(rows, error, recipe)


CASES = {
    # -------------------------------------------------------------------------------------------------- columns
    "no rejected": case('no column "rejected": a pair is a better and a worse answer, and "chosen" is one. Known: prompt. Name it: rejected = ...', {"prompt": "Q?", "chosen": "a"}),
    "misspelled": case('no column "rejected": a pair is a better and a worse answer, and "chosen" is one. Did you mean "rejeted"? Name it: rejected = ...', {"prompt": "Q?", "chosen": "a", "rejeted": "b"}),
    "no chosen": case('no column "chosen": a pair is a better and a worse answer, and "rejected" is one. Known: prompt. Name it: chosen = ...', {"prompt": "Q?", "rejected": "b"}),
    "no rejected in a later row": case('no column "rejected"', FINE, {"prompt": "Q?", "chosen": "a"}),
    "no prompt in a later row": case('no column "prompt". Name the column in the stage\'s table: prompt = ...', FINE, {"chosen": "a", "rejected": "b"}),
    "a conversation": case('the objective takes pairs of answers, but there is no column "chosen" and "rejected". Columns: messages. Name the columns: [[data.stage]] use = "preferences", chosen = ..., rejected = ...; to train on all answers: [objective] use = "sft"', {"messages": Q + A}),
    "judged answers for pairs": case('rows of judged answers ("label" says whether one is good), but the objective takes pairs of answers. [objective] use = "kto" takes these; pairs have the columns "chosen" and "rejected"', JUDGED),
    "a conversation for judged answers": case('the objective takes answers that are judged good or bad, but there is no column "label" (true or false), or "chosen" and "rejected". Columns: messages, lable. Is "lable" to be "label"?', {"messages": Q + A, "lable": True}, recipe=LABELLED),
    # --------------------------------------------------------------------------------------------------- prompts
    "prompts differ": case('what is asked is not the same in "chosen" and "rejected": they differ in message 1 (user). An answer is to differ alone', {"chosen": Q + A, "rejected": [user("P?"), *B]}),
    "system messages differ": case('what is asked is not the same in "chosen" and "rejected": they differ in message 1 (system). An answer is to differ alone', {"chosen": [{"role": "system", "content": "S"}, *Q, *A], "rejected": [{"role": "system", "content": "T"}, *Q, *B]}),
    "a later question differs": case('what is asked is not the same in "chosen" and "rejected": they differ in message 3 (user). An answer is to differ alone', {"chosen": [*Q, *A, user("P?"), *A], "rejected": [*Q, *A, user("R?"), *B]}),
    "one side goes on": case('column "rejected" has no answer behind the 2 messages that both share', {"chosen": [*Q, *A, user("P?"), *A], "rejected": Q + A}),
    "prompt is another": case('column "prompt" is "P?", which is no message of "chosen". Leave one of the two out, or make them agree', {"prompt": "P?", "chosen": Q + A, "rejected": Q + B}),
    "prompt is empty": case('column "prompt" is empty, so nothing is asked. Leave the row out', {**FINE, "prompt": " "}),
    "prompt is null": case('column "prompt" is null, not a text', {**FINE, "prompt": None}),
    "prompt is an empty list": case('column "prompt" is not a list of messages. It takes: [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]', {**FINE, "prompt": []}),
    "prompt ends with an answer": case('column "prompt" ends with an answer, not with a question', {"prompt": Q + A, "chosen": A, "rejected": B}),
    "nothing is asked": case('no column says what is asked, and "chosen" and "rejected" do not begin alike. Name the column with the question: prompt = ...', {"chosen": "a", "rejected": "b"}),
    "answers without a prompt": case("no column says what is asked. Name it in the stage's table: prompt = ...", {"chosen": A, "rejected": B}),
    # --------------------------------------------------------------------------------------------------- answers
    "null": case('column "rejected" is null, not a text', {**FINE, "rejected": None}),
    "a number": case('column "chosen" is 5, not a text', {**FINE, "chosen": 5}),
    "a list of texts": case("message 1 is not an object with a role and a content", {**FINE, "chosen": ["a"], "rejected": ["b"]}),
    "text and messages": case('column "chosen" is a text, but "rejected" holds messages. Write both in one form', {**FINE, "rejected": Q + B}),
    "no role": case("message 1 is not an object with a role and a content. It has: content", {**FINE, "chosen": [{"content": "a"}], "rejected": [{"content": "b"}]}),
    "wrong role": case('message 1 has the role "asistant". Did you mean "assistant"?', {**FINE, "chosen": [{"role": "asistant", "content": "a"}], "rejected": B}),
    "content is nested": case('message 1 (assistant): "content" is {"text": "a"}, not a text', {**FINE, "chosen": [assistant({"text": "a"})], "rejected": B}),
    "wrong speaker": case('message 1 is from "bot". Known: assistant, bard, bing, chatgpt, function, function_call, function_response, gpt, human, model, observation, system, tool, user', {"conversations": [{"from": "human", "value": "Q?"}], "chosen": {"from": "bot", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}}),
    "JSON that is cut off": case('column "chosen" is not JSON: "[{\\"role\\": \\"assistant\\"". Write a list of messages', {**FINE, "chosen": '[{"role": "assistant"', "rejected": "b"}),
    "tools are no list": case('column "tools" is 5. Write a list of tools, each an object', {"prompt": Q, "chosen": A, "rejected": B, "tools": 5}),
    "a weight of a half": case('column "weight" is 0.5, neither yes nor no. It takes 0, 1, true or false under weight, train, training, trainable, train_on_turn, loss, loss_weight, loss_mask (trained on) or masked (not). To pass over such keys, name the format (or "detect") in a [[data.stage]], with loss_keys = false', {**FINE, "weight": 0.5}),
    # ---------------------------------------------------------------------------------------------------- labels
    "label is a word": case('column "label" is "good". It takes true (a good answer) or false (a bad one)', {**JUDGED, "label": "good"}, recipe=LABELLED),
    "label is a half": case('column "label" is 0.5. It takes true (a good answer) or false (a bad one)', {**JUDGED, "label": 0.5}, recipe=LABELLED),
    "label is null": case('column "label" is null. It takes true (a good answer) or false (a bad one)', {**JUDGED, "label": None}, recipe=LABELLED),
    "no label in a later row": case('no column "label"', JUDGED, {"prompt": "Q?", "completion": "a"}, recipe=LABELLED),
    "judged question": case('column "messages" does not end with an answer to a question. Name the column with the answer: completion = ...', {"messages": Q, "label": True}, recipe=LABELLED),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_one_clear_error(name: str, tmp_path: Path) -> None:
    given = CASES[name]
    with pytest.raises(DataError) as found:
        compared(tmp_path, given.recipe, *given.rows)
    assert found.value.message == f"{tmp_path / 'data.jsonl'}:{len(given.rows)}: {given.error}"


@pytest.mark.parametrize("name", ["null", "prompts differ", "label is a half"])
def test_or_skipped_and_counted(name: str, tmp_path: Path) -> None:
    given = CASES[name]
    fine = FINE if given.recipe == PAIRS else JUDGED
    other = {**fine, "label": False} if given.recipe == LABELLED else fine
    rows = compared(
        tmp_path,
        given.recipe,
        *([fine, other] if "label" in name else []),
        *given.rows,
        *_after(name),
        sets=("data.bad_rows='skip'",),
    )
    assert ("bad rows skipped", 1) in rows.notes


def _after(name: str) -> list[Row]:
    """A good row behind the bad one, of the same form."""
    return [{"chosen": Q + A, "rejected": Q + B}] if name == "prompts differ" else [] if "label" in name else [FINE]


@pytest.mark.parametrize(("label", "kind", "fix"), [
    (True, "good", 'To learn from good ones alone: [objective] use = "sft"'),
    (False, "bad", "Add rows whose label is true"),
])  # fmt: skip
def test_judged_answers_of_one_kind_alone(label: bool, kind: str, fix: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}?", "completion": "a", "label": label} for n in range(3)]
    with pytest.raises(DataError) as found:
        compared(tmp_path, LABELLED, *rows)
    assert found.value.message == f"all 3 answers are judged {kind}: there is nothing to compare. {fix}"


def test_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no row is left to train on \(rows left out: chosen and rejected are equal: 2\)"
    ):
        compared(tmp_path, PAIRS, *[{**FINE, "rejected": "a"}] * 2)


def test_pairs_for_an_objective_that_learns_from_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.jsonl:1: preferences \(chosen, rejected\), but the objective learns"):
        prepared(write(tmp_path, lines(FINE), RECIPE), "data.cache=false")


@pytest.mark.parametrize(("stages", "error"), [
    ('{use="messages"}, {use="chat"}', '"chat" takes preferences, but what comes to it is conversations. The objective takes pairs of answers: use = "preferences" in place of the format before it'),
    ('{use="preferences"}, {use="tokenize"}', '"tokenize" takes documents, but what comes to it is preferences. Stages that take preferences: none'),
])  # fmt: skip
def test_stages_for_another_objective(stages: str, error: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as found:
        compared(tmp_path, PAIRS, FINE, sets=(f"data.stage=[{stages}]",))
    assert found.value.message.endswith(error)


def test_preferences_for_an_objective_that_learns_from_all(tmp_path: Path) -> None:
    path = write(tmp_path, lines(FINE), RECIPE)
    with pytest.raises(RecipeError) as found:
        prepared(path, 'data.stage=[{use="preferences"}, {use="chat"}]')
    assert found.value.message.endswith(
        '"chat" takes conversations, but what comes to it is preferences. Name an objective that compares answers, e.g. [objective] use = "dpo", or remove the stage before it'
    )


def test_documents_for_an_objective_that_compares(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a document, but the objective compares answers"):
        compared(tmp_path, PAIRS, {"text": "a"}, sets=('data.stage=[{use="plain-text"}]',))


@pytest.mark.parametrize(("stages", "error"), [
    ('{use="chat", loss="all"}', 'loss = "all" trains on questions, but the objective compares answers. Use loss = "assistant" or "completion"'),
    ('{use="chat"}, {use="truncate", policy="split"}', 'answers that are compared cannot be split. Use policy = "right", "left" or "drop"'),
])  # fmt: skip
def test_options_that_compare_nothing(stages: str, error: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as found:
        compared(tmp_path, PAIRS, FINE, sets=(f"data.stage=[{stages}]",))
    assert found.value.message.endswith(error)
