"""What is trained on: in text and in tokens, it is the assistant's text and its end mark, for every template family."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitune import Conversation
from support.templates import FAMILIES, Family, conversation, label, marked, render, targets, tokenizer

FRAGMENTS = (
    *(
        "hi",
        "hello",
        " ",
        "  ",
        "\n",
        "\n\n",
        "\t",
        "42",
        ".",
        ":",
        ">",
        "é",
        "e\u0301",
        "日本",
        "🙂",
        "\u00a0",
        "\U0010fffd",
    ),
    *("<|im_end|>", "</s>", "<s>", "[INST]", "[/INST]", "<|end|>", "<end_of_turn>", "<|eot_id|>", "<|"),
    *("Assistant:", "</think>", "{{ x }}", "{% raw %}"),
)
TEXTS = st.one_of(
    st.lists(st.sampled_from(FRAGMENTS), max_size=6).map("".join),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=8),
)
TALKS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3)
by_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def talk_of(turns: list[tuple[str, str]]) -> Conversation:
    return conversation(*[text for turn in turns for text in turn])


def canonical(family: Family, text: str) -> str:
    """Without what the family's own tokenizer changes: NFC, and white space behind its special tokens.

    Llama's tokenizers put a blank at the beginning of a text and behind special tokens; where Phi-3's header has lost
    its line end to the special token before it, that is before the answer.
    """
    if family.kind == "llama":
        special = "|".join(map(re.escape, filter(None, (family.bos, family.eos, *family.others))))
        text = re.sub(f"({special})\\s*" if family.eats else f"({special}) *", r"\1", text)
        text = text.removeprefix(" ") if family.eats else text
    return unicodedata.normalize("NFC", text) if family.kind == "gpt4-nfc" else text


def check(family: Family, turns: list[tuple[str, str]], **options: object) -> None:
    made = tokenizer(family)
    expected = [family.written(answer) for _, answer in turns]
    document = render(made, talk_of(turns), **options)
    assert document.text == family.rendered(turns)
    assert marked(document) == expected
    found = targets(made, label(made, document))
    assert [canonical(family, text) for text in found] == [canonical(family, text) for text in expected]


@by_family
@settings(max_examples=60, deadline=None, derandomize=True)
@given(turns=TALKS)
def test_targets_are_the_answers_and_their_end_marks(family: Family, turns: list[tuple[str, str]]) -> None:
    check(family, turns, template=family.name)


@by_family
@settings(max_examples=30, deadline=None, derandomize=True)
@given(turns=TALKS)
def test_generation_marks_give_the_same(family: Family, turns: list[tuple[str, str]]) -> None:
    made = tokenizer(family)
    made.chat_template = family.marked_template()
    check(family, turns)
