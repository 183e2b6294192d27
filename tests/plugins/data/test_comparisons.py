"""Answers that are compared: one row, two documents with the same prompt, answers alone trained on; and what is cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitune import IGNORED, Example, Origin
from fitune.data.prepare import batch_maker, context_of
from fitune_plugins.data.comparisons import prompt_of
from fitune_plugins.data.pack import join
from fitune_plugins.data.pair_cut import NO_ROOM, cut
from support.compared import LABELLED, PAIRS, Takes, Told, compared, lines, told
from support.prepared import held_out, prepared, read, write


def asked(*said: str) -> str:
    """What the tiny template writes of these turns, up to where the assistant answers."""
    roles = ["user", "assistant"] * len(said)
    turns = "".join(f"<256>{role}\n{text}<257>\n" for role, text in zip(roles, said, strict=False))
    return f"{turns}<256>assistant\n"


def rows_of(directory: Path, text: str, *rows: dict[str, Any], sets: tuple[str, ...] = ()) -> list[list[Told]]:
    return [told(example) for example in compared(directory, text, *rows, sets=sets).rows]


def turns(*said: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 9, said, strict=False)]


NEWLINE = "\n"  # behind the mark of a turn; it is not the model's to write


def test_a_pair_is_one_row_of_two_documents(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path, PAIRS, {"prompt": "Q?", "chosen": "good", "rejected": "bad"})
    assert row == [(1, asked("Q?") + NEWLINE, "good<257>"), (-1, asked("Q?") + NEWLINE, "bad<257>")]


def test_answers_in_the_prompt_are_not_trained_on(tmp_path: Path) -> None:
    talk = turns("Hi", "Yes?", "Q?")
    (row,) = rows_of(
        tmp_path, PAIRS, {"chosen": [*talk, *turns("", "good")[1:]], "rejected": [*talk, *turns("", "bad")[1:]]}
    )
    assert row == [
        (1, asked("Hi", "Yes?", "Q?") + NEWLINE, "good<257>"),
        (-1, asked("Hi", "Yes?", "Q?") + NEWLINE, "bad<257>"),
    ]


def test_answers_of_several_turns_are_trained_on_as_the_stage_says(tmp_path: Path) -> None:
    more = turns("", "one", "Then?", "two")[1:]
    row = {"prompt": "Q?", "chosen": more, "rejected": turns("", "bad")[1:]}
    for loss, expected in (("assistant", "one<257>two<257>"), ("completion", "two<257>")):
        ((chosen, _),) = rows_of(tmp_path / loss, PAIRS, row, sets=(f'data.stage=[{{use="chat", loss="{loss}"}}]',))
        assert chosen[2] == expected


HEADED = """\
{%- for message in messages -%}
<|start|>{{ message.role }}{{ message.tone }}
{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|end|>{% endgeneration %}{% else %}{{ message.content }}<|end|>{% endif %}
{% endfor -%}
"""  # noqa: E501


def test_sides_that_differ_before_the_answer_are_counted(tmp_path: Path) -> None:
    """What a template writes by what it knows of an answer, and the model does not, is no part of the prompt."""
    (tmp_path / "t.jinja").write_text(HEADED, encoding="utf-8")
    sides = ({"role": "assistant", "content": "a", "tone": tone} for tone in (" dry", " kind"))
    row = dict(zip(("prompt", "chosen", "rejected"), ("Q?", *([side] for side in sides)), strict=True))
    stages = f'data.stage=[{{use="chat", template_file="{tmp_path}/t.jinja"}}]'
    data = compared(tmp_path, PAIRS, row, sets=(stages,))
    assert ("pairs whose sides differ before what is trained on", 1) in data.notes
    assert [answer for _, _, answer in told(data.rows[0])] == ["a<257>", "a<257>"]


def test_texts_that_go_on_have_no_template_around_them(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path, PAIRS, {"chosen": "It is blue.", "rejected": "It is black."})
    assert row == [(1, "It is", " blue.<257>"), (-1, "It is", " black.<257>")]


def test_pairs_are_packed_whole(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}?", "chosen": f"{n}" * n, "rejected": "x"} for n in range(1, 7)]
    packed = rows_of(tmp_path, PAIRS, *rows, sets=('data.stage=[{use="chat"}, {use="pack"}]',))
    assert len(packed) < 6
    assert [role for row in packed for role, _, _ in row] == [1, -1] * 6
    pairs = {tuple(row[at : at + 2]) for row in packed for at in range(0, len(row), 2)}
    assert pairs == {
        ((1, asked(f"{n}?") + NEWLINE, f"{n}" * n + "<257>"), (-1, asked(f"{n}?") + NEWLINE, "x<257>"))
        for n in range(1, 7)
    }


def test_a_batch_keeps_documents_apart(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        lines({"prompt": "Q?", "chosen": "good", "rejected": "bad"}, {"prompt": "P", "chosen": "a", "rejected": "b"}),
        PAIRS,
    )
    recipe = read(path, plugins=(Takes(),))
    tokenizer = recipe.model.record.load_tokenizer(recipe.model.options)
    rows = list(prepared(path, plugins=(Takes(),)).rows)
    batch = next(batch_maker(recipe.stages, context_of(recipe, tokenizer))(iter([rows])))
    assert batch.lengths == (27, 26, 23, 23, 7)
    assert batch.extras["role"].tolist() == [1, -1, 1, -1, 0]
    assert batch.positions[0, 27] == 0


def judged(n: int, label: bool) -> dict[str, Any]:
    return {"prompt": f"{n}?", "completion": f"a{n}", "label": label}


def test_a_judged_answer_stands_beside_the_next_rows(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, LABELLED, judged(0, True), judged(1, False), judged(2, True))
    assert rows == [
        [(role, asked(f"{n}?") + NEWLINE, f"a{n}<257>"), (2, asked(f"{n}?") + NEWLINE, f"a{(n + 1) % 3}<257>")]
        for n, role in ((0, 1), (1, -1), (2, 1))
    ]


def test_pairs_are_two_judged_answers_each_beside_another_questions(tmp_path: Path) -> None:
    pairs = [{"prompt": f"{n}?", "chosen": f"good{n}", "rejected": f"bad{n}"} for n in range(2)]
    rows = rows_of(tmp_path, LABELLED, *pairs)
    assert [(role, answer, other) for (role, _, answer), (_, _, other) in rows] == [
        (1, "good0<257>", "good1<257>"),
        (-1, "bad0<257>", "good1<257>"),
        (1, "good1<257>", "good0<257>"),
        (-1, "bad1<257>", "good0<257>"),
    ]


def test_answers_to_one_question_alone_say_so(tmp_path: Path) -> None:
    data = compared(tmp_path, LABELLED, {"prompt": "Q?", "chosen": "good", "rejected": "bad"})
    assert [(row[0][2], row[1][2]) for row in map(told, data.rows)] == [
        ("good<257>", "bad<257>"),
        ("bad<257>", "good<257>"),
    ]
    assert data.notes[-1][0].startswith("answers that stand beside another one to the same question")


def test_the_held_out_side_is_that_of_rows_and_may_be_of_one_kind(tmp_path: Path) -> None:
    text = LABELLED + "\n[eval]\nfraction = 0.3\n"
    path = write(tmp_path, lines(*(judged(n, n != 7) for n in range(12))), text)
    assert read(path, plugins=(Takes(),)).evaluation.fraction == 0.3
    rows = held_out(path, plugins=(Takes(),))
    assert rows is not None
    trained = prepared(path, plugins=(Takes(),))
    origins = [{row.origin.row for row in side} for side in (rows.rows, trained.rows)]
    assert not origins[0] & origins[1]
    assert len(origins[0] | origins[1]) == 12


# ------------------------------------------------------------------------------------------------------------ cut


def row(prompt: int, chosen: list[int], rejected: list[int]) -> Example:
    def side(answer: list[int]) -> Example:
        ids = np.array([*range(100, 100 + prompt), *answer], dtype=np.int32)
        labels = np.where(np.arange(len(ids)) < prompt, IGNORED, ids).astype(np.int32)
        return Example(input_ids=ids, labels=labels, origin=Origin(file="f", row=1))

    return replace(join([side(chosen), side(rejected)]), extras={"role": (1.0, -1.0)})


def documents(example: Example | None) -> list[list[int]]:
    assert example is not None
    first = example.lengths[0]
    return [example.input_ids[:first].tolist(), example.input_ids[first:].tolist()]


LONG = row(4, [1, 2, 3, 4, 5], [6, 7])


@pytest.mark.parametrize(("length", "policy", "expected", "done"), [
    (14, "right", [[100, 101, 102, 103, 1, 2, 3, 4], [100, 101, 102, 103, 6, 7]], ["right"]),
    (13, "right", [[100, 101, 102, 103, 1, 2, 3], [100, 101, 102, 103, 6, 7]], ["right"]),
    (11, "right", [[100, 101, 102, 103, 1], [100, 101, 102, 103, 6]], ["right"]),
    (14, "left", [[101, 102, 103, 1, 2, 3, 4, 5], [101, 102, 103, 6, 7]], ["left"]),
    (9, "left", [[103, 1, 2, 3, 4, 5], [103, 6, 7]], ["left"]),
    (8, "left", [[103, 1, 2, 3, 4], [103, 6, 7]], ["left", "right"]),
])  # fmt: skip
def test_both_prompts_stay_alike(length: int, policy: Any, expected: list[list[int]], done: list[str]) -> None:
    found = cut(LONG, length, policy)
    assert documents(found.example) == expected
    assert list(found.done) == [f"rows cut at the {end}" for end in done]


def test_no_answer_is_cut_to_nothing() -> None:
    for length in (8, 9):
        found = cut(LONG, length, "right")
        assert (found.example, found.done) == (None, (NO_ROOM,))


def test_answers_that_are_equal_once_cut_are_left_out() -> None:
    found = cut(row(2, [1, 2, 3, 4], [1, 2, 5, 6]), 8, "right")
    assert found.example is None
    assert found.done == ("rows dropped: chosen and rejected are equal once they are cut",)


TOKENS = st.lists(st.integers(1, 50), min_size=1, max_size=12)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.integers(1, 12), TOKENS, TOKENS, st.integers(3, 40), st.sampled_from(["right", "left"]))
def test_a_cut_row_fits_and_keeps_what_it_must(
    prompt: int, one: list[int], other: list[int], length: int, policy: Any
) -> None:
    """The same prompt in both, behind it what each answer begins with, and as many tokens as fit but for one."""
    whole = row(prompt, one, other)
    if len(whole.input_ids) <= length:
        return
    found = cut(whole, length, policy)
    if found.example is None:
        assert policy == "right" or one[: len(other)] == other[: len(one)] or length < 4 or one[0] == other[0]
        return
    sides = documents(found.example)
    kept = min(len(side) for side in sides)
    left = prompt_of(*(_side(found.example, at) for at in (0, 1)))
    assert 1 <= left <= prompt
    assert sides[0][:left] == sides[1][:left] == list(range(100, 100 + prompt))[prompt - left :]
    assert sides[0][left:] == one[: len(sides[0]) - left] != []
    assert sides[1][left:] == other[: len(sides[1]) - left] != []
    assert length - 1 <= len(found.example.input_ids) <= length
    assert kept > left
    assert found.example.targets == len(found.example.input_ids) - 2 * left
    assert found.example.extras == whole.extras


def _side(example: Example, at: int) -> Example:
    first = example.lengths[0]
    part = slice(0, first) if at == 0 else slice(first, None)
    return Example(input_ids=example.input_ids[part], labels=example.labels[part], origin=example.origin)


def test_long_rows_are_cut_and_counted(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Q?", "chosen": "a", "rejected": "b"},
        {"prompt": "Q?", "chosen": "good" * 9, "rejected": "bad"},
        {"prompt": "Q?" * 99, "chosen": "good", "rejected": "bad"},
    ]
    data = compared(tmp_path, PAIRS, *rows, sets=("train.length=64",))
    assert [len(example.input_ids) for example in data.rows] == [48, 64]
    assert dict(data.notes)["rows cut at the right"] == 1
    assert dict(data.notes)[NO_ROOM] == 1
    dropped = compared(
        tmp_path / "d",
        PAIRS,
        *rows,
        sets=("train.length=64", 'data.stage=[{use="chat"}, {use="truncate", policy="drop"}]'),
    )
    assert dict(dropped.notes)["rows dropped: too long"] == 2
