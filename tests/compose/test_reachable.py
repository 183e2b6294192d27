"""Held-out answers that a setting cuts short are told from those that a model could have given."""

from __future__ import annotations

import numpy as np
import pytest

from fitune import IGNORED, Answer, EvalReport, Example, Origin
from fitune.cli.console import evaluation_text
from fitune.compose.reachable import cut_by
from fitune.runs.metrics import eval_values

END = 9


@pytest.mark.parametrize(
    ("prompt", "answer", "most", "length", "cut"),
    [
        ([1, 2], [3, 4, END], 2, 99, ""),  # the end need not fit
        ([1, 2], [3, 4, END], 1, 99, "max_new_tokens"),
        ([1, 2], [3, 4], 2, 99, ""),  # nothing ends it
        ([1, 2], [3, 4], 9, 4, "length"),  # it goes on to the end of a full row, and has no end
        ([1, 2], [3, 4, END], 9, 5, ""),  # it ends where the row is full
        ([1, 2], [3, 4], 9, None, ""),
    ],
)
def test_what_cuts_an_answer(prompt: list[int], answer: list[int], most: int, length: int | None, cut: str) -> None:
    ids = np.array([*prompt, *answer], dtype=np.int32)
    labels = np.array([IGNORED] * len(prompt) + answer, dtype=np.int32)
    example = Example(input_ids=ids, labels=labels, origin=Origin(file="a", row=1))
    assert cut_by(example, ids[len(prompt) :], [END], most, length) == cut


def test_a_text_that_ends_an_answer_is_to_be_generated_too() -> None:
    ids = np.array([1, 2, 3, 4], dtype=np.int32)
    example = Example(input_ids=ids, labels=ids, origin=Origin(file="a", row=1))
    assert cut_by(example, ids[1:], [END], 2, None, by_text=True) == "max_new_tokens"
    assert cut_by(example, ids[1:], [END], 3, None, by_text=True) == ""
    assert cut_by(example, ids[1:], [END], 3, 4, by_text=True) == ""
    assert cut_by(example, ids[1:], [END], 3, 4) == "length"


def report(*answers: Answer) -> EvalReport:
    return EvalReport(step=3, loss=1.5, rows=len(answers), targets=9, seconds=0.25, answers=answers)


RIGHT = Answer(prompt="?", expected="a", generated="a")
WRONG = Answer(prompt="?", expected="a", generated="b")
LONG = Answer(prompt="?", expected="a b", generated="a", cut="max_new_tokens")
CUT = Answer(prompt="?", expected="a", generated="a b", cut="length")


def test_both_shares_are_told() -> None:
    found = report(RIGHT, WRONG, LONG, LONG, CUT)
    assert (found.exact_match, found.exact_match_of_whole, found.answers_cut) == (0.2, 0.5, 3)
    assert evaluation_text(found) == (
        "held out after 3 steps: loss 1.5000, exact match 20.0 % (1 of 5), of which 2 longer than [eval] "
        "max_new_tokens and 1 cut at [train] length cannot match: 50.0 % of the other 2  [0.2 s]"
    )
    values = eval_values(found)
    assert (values["exact_match"], values["answers_cut"], values["exact_match_of_whole"]) == (0.2, 3, 0.5)


def test_where_no_answer_can_match() -> None:
    found = report(LONG)
    assert found.exact_match_of_whole is None
    assert "1 longer than [eval] max_new_tokens cannot match  [" in evaluation_text(found)


def test_nothing_is_said_where_none_is_cut() -> None:
    found = report(RIGHT, WRONG)
    assert evaluation_text(found).endswith("exact match 50.0 % (1 of 2)  [0.2 s]")
    assert not {"answers_cut", "exact_match_of_whole"} & set(eval_values(found))
