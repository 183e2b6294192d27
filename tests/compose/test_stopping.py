"""What ends an answer: special tokens, and texts of several tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fitune.compose.stopping import Ends, added_behind, ends_of
from fitune.testing import write_tiny_tokenizer
from support.templates import FAMILIES, tokenizer


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    directory = tmp_path_factory.mktemp("tokenizer")
    write_tiny_tokenizer(directory)
    return AutoTokenizer.from_pretrained(directory)


def _ended(ends: Ends, made: Any, prompt: str, *answers: str) -> list[bool]:
    """Whether answers of one length in tokens, behind the same prompt, have ended."""
    rows = [made(text, add_special_tokens=False)["input_ids"] for text in (prompt, *answers)]
    ids = torch.tensor([[*rows[0], *row] for row in rows[1:]])
    (criterion,) = ends.arguments(made, len(rows[0]))["stopping_criteria"]
    found = criterion(ids, None)
    assert found.dtype == torch.bool
    return [bool(value) for value in found]


def test_each_row_ends_by_itself(tiny: Any) -> None:
    ends = Ends(texts=("###", " END"))
    assert _ended(ends, tiny, "q: ", "ab END", "ab ###", "abc EN", "abc ##") == [True, True, False, False]


def test_a_blank_that_begins_an_answer_counts_in_a_tokenizer_that_drops_it() -> None:
    made = tokenizer(next(family for family in FAMILIES if family.kind == "llama"))
    ids, prompt = (made(text, add_special_tokens=False)["input_ids"] for text in ("q: END", "q:"))
    assert ids[: len(prompt)] == prompt
    assert made.decode(ids[len(prompt) :]) == "END"
    (criterion,) = Ends(texts=(" END",)).arguments(made, len(prompt))["stopping_criteria"]
    assert criterion(torch.tensor([ids]), None).tolist() == [True]


def test_what_the_prompt_says_ends_nothing(tiny: Any) -> None:
    assert _ended(Ends(texts=("###",)), tiny, "one ###", "abc") == [False]
    assert _ended(Ends(texts=("###",)), tiny, "one ##", "#bc") == [False]


def test_an_end_that_is_far_behind_the_prompt(tiny: Any) -> None:
    answers = ["x" * 500 + "###", "x" * 500 + "## "]
    assert _ended(Ends(texts=("###",)), tiny, "q: ", *answers) == [True, False]


def test_tokens_alone_need_no_criterion(tiny: Any) -> None:
    assert Ends(tokens=(257,)).arguments(tiny, 3) == {}


def test_texts_are_cut() -> None:
    ends = Ends(texts=("###", "END"))
    assert [ends.cut(text) for text in ("a END b ###", "a ### b END", "a", "###")] == ["a ", "a ", "a", ""]
    assert [ends.without(text) for text in ("a ### b END", "a ### b", "END")] == ["a ### b ", "a ### b", ""]
    assert [ends.begun(text) for text in ("a ##", "a EN", "a E", "a ##E", "a ###", "", "#")] == [2, 2, 1, 1, 2, 0, 1]
    assert Ends().begun("a") == 0


@pytest.mark.parametrize("behind", [[], ["<|pad|>"], ["<|end|>", "<|pad|>"]])
def test_what_a_tokenizer_puts_behind_texts_ends_them(tmp_path: Path, behind: list[str]) -> None:
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    write_tiny_tokenizer(tmp_path)
    made: Any = AutoTokenizer.from_pretrained(tmp_path)
    ids = [made.convert_tokens_to_ids(token) for token in behind]
    pairs = list(zip(behind, ids, strict=True))
    made.backend_tokenizer.post_processor = TemplateProcessing(single=["$A", *behind], special_tokens=pairs)
    assert added_behind(made) == ids
    assert ends_of(made, None) == Ends(tokens=tuple(sorted({made.eos_token_id, *ids})))
