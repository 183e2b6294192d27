"""A row's own word on what of it is trained on: obeyed where it is known, an error where it is not."""

# ruff: noqa: E501 - an error is one line, and is read best as one

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from fitune import Conversation, DataError, DataStage, Origin, Row
from fitune.plugin.options import parse
from fitune_plugins.data import chat, detect, formats
from fitune_plugins.data.loss_keys import is_one
from support.templates import FAMILIES, context, marked, tokenizer

STAGES: dict[str, DataStage[Any]] = {
    stage.name: stage for plugin in (formats, detect) for stage in plugin.ft_data_stages()
}
CHATML = tokenizer(FAMILIES[0])
TAKES = (
    "It takes 0, 1, true or false under weight, train, training, trainable, train_on_turn, loss, loss_weight, loss_mask "
    "(trained on) or masked (not)"
)
PASS_OVER = 'To pass over such keys, name the format (or "detect") in a [[data.stage]], with loss_keys = false'
TURNS: list[tuple[str, str]] = [("user", "1?"), ("assistant", "one"), ("user", "2?"), ("assistant", "two")]
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def read(stage: str, values: Mapping[str, Any], counted: list[str] | None = None, **options: Any) -> list[Conversation]:
    chosen, problems = parse(STAGES[stage].options, options)
    assert not problems
    row = Row(values=values, origin=Origin(file="data.jsonl", row=7))
    return list(STAGES[stage].make(chosen, context(CHATML, counted))(iter([row])))


def error(stage: str, values: Mapping[str, Any]) -> str:
    with pytest.raises(DataError) as found:
        read(stage, values)
    assert found.value.lines == (found.value.message,)
    return found.value.message.removeprefix("data.jsonl:7: ")


def trained(talk: Conversation, **options: Any) -> list[str]:
    (stage,) = chat.ft_data_stages()
    (document,) = stage.make(chat.ChatOptions(**options), context(CHATML))(iter([talk]))
    return marked(document)


def openai(**of_first_answer: Any) -> dict[str, Any]:
    messages = [{"role": role, "content": said} for role, said in TURNS]
    return {"messages": [messages[0], {**messages[1], **of_first_answer}, *messages[2:]]}


def sharegpt(**of_first_answer: Any) -> dict[str, Any]:
    messages = [{"from": {"user": "human"}.get(role, "gpt"), "value": said} for role, said in TURNS]
    return {"conversations": [messages[0], {**messages[1], **of_first_answer}, *messages[2:]]}


# ------------------------------------------------------------------------------------------------------- of messages


@pytest.mark.parametrize("row", [openai, sharegpt])
@pytest.mark.parametrize(
    "said",
    [
        {"weight": 0},
        {"weight": 0.0},
        {"train": False},
        {"training": False},
        {"trainable": False},
        {"train_on_turn": False},
        {"loss": False},
        {"loss": "false"},
        {"loss_weight": 0.0},
        {"loss_mask": 0},
        {"masked": True},
        {"weight": 0, "masked": 1, "train": None},
    ],
    ids=str,
)
def test_an_answer_that_is_not_trained_on(said: dict[str, Any], row: Any) -> None:
    for stage in ("detect", "messages" if row is openai else "sharegpt"):
        (talk,) = read(stage, row(**said))
        assert talk.untrained == {1}
        assert [set(turn) for turn in talk.messages] == [{"role", "content"}] * 4
        assert trained(talk, template="chatml") == ["two<|im_end|>"]


@pytest.mark.parametrize("row", [openai, sharegpt])
@pytest.mark.parametrize("said", [{"weight": 1}, {"train": True}, {"loss": "1"}, {"masked": False}, {"weight": None}, {"loss": ""}, {}], ids=str)  # fmt: skip
def test_an_answer_that_is(said: dict[str, Any], row: Any) -> None:
    (talk,) = read("detect", row(**said))
    assert talk.untrained == frozenset()
    assert [set(turn) for turn in talk.messages] == [{"role", "content"}] * 4
    assert trained(talk, template="chatml") == ["one<|im_end|>", "two<|im_end|>"]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"weight": 0.5}, f'"weight" is 0.5, neither yes nor no. {TAKES}. {PASS_OVER}'),
        ({"weight": 2}, f'"weight" is 2, neither yes nor no. {TAKES}. {PASS_OVER}'),
        ({"train": "maybe"}, f'"train" is "maybe", neither yes nor no. {TAKES}. {PASS_OVER}'),
        ({"loss_mask": [1, 0]}, f'"loss_mask" is [1, 0], neither yes nor no. {TAKES}. {PASS_OVER}'),
        ({"traning": 0}, f'"traning" says what is trained on in a way that is not known: 0. Is it to be "training"? {TAKES}. {PASS_OVER}'),
        ({"weigth": 0}, f'"weigth" says what is trained on in a way that is not known: 0. Is it to be "weight"? {TAKES}. {PASS_OVER}'),
        ({"Weight": 0}, f'"Weight" says what is trained on in a way that is not known: 0. Is it to be "weight"? {TAKES}. {PASS_OVER}'),
        ({"trainOnTurn": False}, f'"trainOnTurn" says what is trained on in a way that is not known: false. Is it to be "train_on_turn"? {TAKES}. {PASS_OVER}'),
        ({"mask": 1}, f'"mask" says what is trained on in a way that is not known: 1. Is it to be "masked"? {TAKES}. {PASS_OVER}'),
        ({"loss_scale": 1}, f'"loss_scale" says what is trained on in a way that is not known: 1. {TAKES}. {PASS_OVER}'),
        ({"training_detail": [{"begin_offset": 0}]}, f'"training_detail" says what is trained on in a way that is not known: [{{"begin_offset": 0}}]. {TAKES}. {PASS_OVER}'),
        ({"weight": 0, "train": True}, f'"weight" and "train" contradict each other. Keep one of them. {PASS_OVER}'),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_a_word_that_is_not_known(said: dict[str, Any], expected: str) -> None:
    assert error("messages", openai(**said)) == f"message 2 (assistant): {expected}"
    assert error("sharegpt", sharegpt(**said)) == f"message 2 (gpt): {expected}"


def test_keys_can_be_passed_over() -> None:
    for stage, row in (("messages", openai), ("sharegpt", sharegpt), ("detect", openai), ("detect", sharegpt)):
        (talk,) = read(stage, {**row(weight=0.5, mask="x"), "loss": 1.25}, loss_keys=False)
        assert talk.untrained == frozenset()
        assert [set(turn) for turn in talk.messages] == [{"role", "content"}] * 4


def test_other_messages_may_say_that_they_are_not_trained_on() -> None:
    (talk,) = read("messages", {"messages": [{"role": "user", "content": "1?", "train_on_turn": False}, openai()["messages"][1]]})  # fmt: skip
    assert talk.untrained == frozenset()


def test_other_messages_cannot_be_trained_on() -> None:
    asked = {"role": "user", "content": "1?", "train": True}
    assert error("messages", {"messages": [asked, {"role": "assistant", "content": "1"}]}) == (
        'message 1 (user): "train" is true, but it is no answer, and only answers are trained on. Leave it out there. '
        + PASS_OVER
    )


ROW = {"prompt": "1?", "completion": "one"}


@pytest.mark.parametrize("key", ["mask_inputs", "do_not_train", "noTrain", "exclude_from_training", "train_on_outputs", "use_for_loss", "skip"])  # fmt: skip
@pytest.mark.parametrize("value", [True, 0, "yes"])
def test_columns_whose_words_say_it(key: str, value: object) -> None:
    said = error("prompt-completion", {**ROW, key: value})
    assert f'column "{key}" says what is trained on in a way that is not known' in said


@pytest.mark.parametrize(("key", "value"), [("train_split", 1), ("loss_history", 0), ("quality_weight", 1), ("train_loss", 0.3), ("skip_reason", "no"), ("is_train", "a"), ("labels", 1)])  # fmt: skip
def test_columns_of_the_rows_own_business(key: str, value: object) -> None:
    assert read("prompt-completion", {**ROW, key: value})


@pytest.mark.parametrize("key", ["ignore", "ignored", "skip", "isSkipped", "exclude_turn", "supervised", "no_learning", "learnable"])  # fmt: skip
def test_words_that_only_mean_it(key: str) -> None:
    said = error("messages", openai(**{key: True}))
    assert f'message 2 (assistant): "{key}" says what is trained on in a way that is not known: true' in said


@pytest.mark.parametrize("key", ["role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "thinking", "refusal", "audio", "function_call", "id", "model", "trace", "rating", "class", "height", "brain", "recipient", "end_turn"])  # fmt: skip
def test_keys_of_other_kinds(key: str) -> None:
    assert not is_one(key)


def test_a_system_message_of_the_stage_moves_nothing() -> None:
    (talk,) = read("messages", openai(weight=0))
    assert trained(talk, template="chatml", system="Count.") == ["two<|im_end|>"]
    (talk,) = read("sharegpt", {**sharegpt(weight=0), "system": "Count."})
    assert talk.untrained == {2}
    assert trained(talk, template="chatml") == ["two<|im_end|>"]


def test_what_the_stage_trains_on_is_less_what_the_row_leaves_out(tmp_path: Any) -> None:
    file = tmp_path / "marked.jinja"
    file.write_text(MARKED)
    first, last = openai(weight=0), {"messages": [*openai()["messages"][:3], {"role": "assistant", "content": "two", "weight": 0}]}  # fmt: skip
    for template in ({"template": "chatml"}, {"template_file": file}):
        (talk,) = read("messages", first)
        assert trained(talk, **template) == ["two<|im_end|>"]
        assert trained(talk, **template, loss="completion") == ["two<|im_end|>"]
        whole = trained(talk, **template, loss="all")
        assert whole[0].endswith("<|im_start|>assistant\n")
        assert whole[1] == "\n<|im_start|>user\n2?<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>\n"
        (talk,) = read("messages", last)
        assert trained(talk, **template) == ["one<|im_end|>"]
        assert trained(talk, **template, loss="completion") == []


# ----------------------------------------------------------------------------------------------------------- of rows

ROWS: dict[str, dict[str, Any]] = {
    "messages": openai(),
    "sharegpt": sharegpt(),
    "alpaca": {"instruction": "1?", "output": "one"},
    "prompt-completion": {"prompt": "1?", "completion": "one"},
}
LEFT_OUT = ["rows left out: they say themselves that nothing of them is trained on"]


@pytest.mark.parametrize("stage", ROWS)
def test_a_row_as_a_whole(stage: str) -> None:
    counted: list[str] = []
    said: dict[str, Any]
    for said in ({"weight": 0}, {"train": "false"}, {"masked": 1}):
        assert read(stage, {**ROWS[stage], **said}, counted) == []
    assert counted == LEFT_OUT * 3
    for said in ({"weight": 1.0}, {"loss": None}, {"train": ""}):
        (talk,) = read(stage, {**ROWS[stage], **said})
        assert talk.untrained == frozenset()


def test_a_row_whose_answers_are_all_left_out() -> None:
    counted: list[str] = []
    messages = [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "1", "weight": 0}]
    assert read("messages", {"messages": messages}, counted) == []
    assert counted == LEFT_OUT


@pytest.mark.parametrize("stage", ROWS)
@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"weight": 0.5}, f'column "weight" is 0.5, neither yes nor no. {TAKES}. {PASS_OVER}'),
        ({"loss": 1.25}, f'column "loss" is 1.25, neither yes nor no. {TAKES}. {PASS_OVER}'),
        ({"weigth": 0}, f'column "weigth" says what is trained on in a way that is not known: 0. Is it to be "weight"? {TAKES}. {PASS_OVER}'),
        ({"weights": [0, 1]}, f'column "weights" says what is trained on in a way that is not known: [0, 1]. Is it to be "weight"? {TAKES}. {PASS_OVER}'),
        ({"mask_history": True}, f'column "mask_history" says what is trained on in a way that is not known: true. {TAKES}. {PASS_OVER}'),
        ({"train_on_inputs": True}, f'column "train_on_inputs" says what is trained on in a way that is not known: true. {TAKES}. {PASS_OVER}'),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_a_word_of_a_row_that_is_not_known(stage: str, said: dict[str, Any], expected: str) -> None:
    assert error(stage, {**ROWS[stage], **said}) == expected


def test_columns_of_other_kinds_are_the_rows_own_business() -> None:
    others = {
        "rain": 3,
        "strain": "H1N1",
        "height": 1.8,
        "task": "qa",
        "class": 2,
        "loss_history": [1.0],
        "trainer": "x",
    }
    (talk,) = read("alpaca", {**ROWS["alpaca"], **others})
    assert talk.untrained == frozenset()


def test_a_column_that_the_row_is_about_is_no_word() -> None:
    (talk,) = read("alpaca", {"instruction": "How heavy?", "weight": "72 kg", "loss": "none"}, input="weight", output="loss")  # fmt: skip
    assert [turn["content"] for turn in talk.messages] == ["How heavy?\n72 kg", "none"]
    assert talk.untrained == frozenset()


# -------------------------------------------------------------------------------------------- prompts and completions

FEW_SHOT = {
    "prompt": [{"role": role, "content": said} for role, said in TURNS[:3]],
    "completion": [{"role": "assistant", "content": "two"}],
}


def test_answers_in_a_prompt_are_not_trained_on() -> None:
    for values in (FEW_SHOT, {**FEW_SHOT, "system": "Count."}, {**FEW_SHOT, "completion": "two"}):
        for stage in ("detect", "prompt-completion"):
            (talk,) = read(stage, values)
            assert talk.asked == 3 + ("system" in values)
            assert trained(talk, template="chatml") == ["two<|im_end|>"]
            assert trained(talk, template="chatml", loss="completion") == ["two<|im_end|>"]


def test_every_answer_of_a_completion_is() -> None:
    completion = [{"role": role, "content": said} for role, said in TURNS[1:]]
    (talk,) = read("detect", {"prompt": "1?", "completion": completion})
    assert trained(talk, template="chatml") == ["one<|im_end|>", "two<|im_end|>"]
    assert trained(talk, template="chatml", loss="completion") == ["two<|im_end|>"]


def test_the_whole_text_has_the_prompt_in_it() -> None:
    (talk,) = read("detect", FEW_SHOT)
    (whole,) = trained(talk, template="chatml", loss="all")
    assert "one<|im_end|>" in whole
    assert "two<|im_end|>" in whole


def test_a_completion_without_an_answer() -> None:
    values = {**FEW_SHOT, "completion": [{"role": "user", "content": "2?"}]}
    assert error("prompt-completion", values) == (
        'no message has the role "assistant", so there is nothing to train on. Roles: user'
    )


# ------------------------------------------------------------------------------------------------------ empty answers


@pytest.mark.parametrize("empty", ["", " \n"])
def test_an_empty_answer_is_no_target(empty: str) -> None:
    counted: list[str] = []
    messages = [{"role": role, "content": said} for role, said in TURNS]
    (talk,) = read("messages", {"messages": [messages[0], {"role": "assistant", "content": empty}, *messages[2:]]}, counted)  # fmt: skip
    assert trained(talk, template="chatml") == ["two<|im_end|>"]
    (talk,) = read("alpaca", {"instruction": "1?", "output": empty}, counted)
    assert trained(talk, template="chatml") == []
    assert counted == ["answers not trained on: empty"] * 2


def test_an_answer_that_only_calls_or_thinks_is_not_empty() -> None:
    call = {"function": {"name": "f", "arguments": {}}}
    for answer in ({"tool_calls": [call]}, {"content": "", "reasoning_content": "Hm."}):
        (talk,) = read("messages", {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", **answer}]})
        assert talk.untrained == frozenset()
