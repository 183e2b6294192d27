"""Pairs under every family's template: each side as SFT writes it, to the token, and both with the same prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from fitune import IGNORED, Conversation, Example, Preference
from fitune_plugins.data import chat
from fitune_plugins.data.comparisons import prompt_of
from support.templates import FAMILIES, Family, context, conversation, label, render
from support.templates import tokenizer as tokenizer_of

PROMPTS: tuple[Sequence[str], ...] = (("Hello!",), ("Hello!", "Hi there.", "How are you?\n"))
ANSWERS = (
    ("Well, thanks.", "Bad."),
    ("Well, thanks.", "Well, thanks. And you?"),
    (" a", "\n\nb"),
    ("12", "1 2"),
    ("é\n", "e"),
)


def side(prompt: Sequence[str], answer: str) -> Conversation:
    return replace(conversation(*prompt, answer), asked=len(prompt))


def documents(example: Example) -> list[tuple[list[int], list[int]]]:
    first = example.lengths[0]
    parts = (slice(0, first), slice(first, None))
    return [(example.input_ids[part].tolist(), example.labels[part].tolist()) for part in parts]


def pairs_of(family: Family, preference: Preference, counted: list[str], **options: Any) -> list[Example]:
    (stage,) = chat.ft_data_stages()
    assert stage.for_preferences is not None
    given = replace(context(tokenizer_of(family), counted), takes="pairs")
    return list(stage.for_preferences.make(chat.ChatOptions(**options), given)(iter([preference])))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("prompt", PROMPTS, ids=["one turn", "three turns"])
def test_both_sides_are_as_sft_writes_them(family: Family, prompt: Sequence[str]) -> None:
    made = tokenizer_of(family)
    for chosen, rejected in ANSWERS:
        sides = (side(prompt, chosen), side(prompt, rejected))
        counted: list[str] = []
        preference = Preference(chosen=sides[0], rejected=sides[1])
        (example,) = pairs_of(family, preference, counted, template=family.name)
        alone = [label(made, render(made, talk, template=family.name)) for talk in sides]
        assert documents(example) == [(one.input_ids.tolist(), one.labels.tolist()) for one in alone]
        assert counted == []
        shared = prompt_of(*alone)
        for one in alone:
            assert (one.labels[:shared] == IGNORED).all()
            assert one.labels[shared] != IGNORED


def test_answers_that_a_template_makes_equal_are_left_out() -> None:
    """Gemma's strips white space around what is said."""
    gemma = next(family for family in FAMILIES if family.name == "gemma")
    sides = (side(PROMPTS[0], " a"), side(PROMPTS[0], "\n\na"))
    counted: list[str] = []
    assert pairs_of(gemma, Preference(chosen=sides[0], rejected=sides[1]), counted, template="gemma") == []
    assert counted == ["rows left out: chosen and rejected are equal"]
