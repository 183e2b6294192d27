"""Kinds of public templates: what the model has to write by each, or the error that names what is left out."""

from __future__ import annotations

import pytest

from fitune import DataError, Document
from fitune_plugins.data import chat
from support.template_kinds import KINDS, TALKS, Kind
from support.templates import context, label, marked, targets, tokenizer

TRAINED = [(kind, form) for kind in KINDS for form in kind.trained]
REFUSED = [(kind, form) for kind in KINDS for form in kind.refused]


def document(kind: Kind, form: str) -> tuple[Document, list[str]]:
    """The conversation as the stage `chat` renders it, and what is told."""
    made, counted = tokenizer(kind.family), list[str]()
    made.chat_template = kind.template
    (stage,) = chat.ft_data_stages()
    (found,) = stage.make(chat.ChatOptions(**kind.options), context(made, counted))(iter([TALKS[form]]))
    assert isinstance(found, Document)
    return found, counted


def test_the_table_is_whole() -> None:
    assert len(KINDS) == 20
    assert all(set(kind.trained) | set(kind.refused) <= set(TALKS) for kind in KINDS)
    assert all(not set(kind.trained) & set(kind.refused) for kind in KINDS)


@pytest.mark.parametrize(("kind", "form"), TRAINED, ids=lambda value: getattr(value, "name", value))
def test_what_is_trained_on(kind: Kind, form: str) -> None:
    found, counted = document(kind, form)
    assert marked(found) == kind.trained[form]
    made = tokenizer(kind.family)
    assert targets(made, label(made, found)) == kind.trained[form]
    assert counted == [] if form not in kind.counted else any(kind.counted[form] in what for what in counted)


@pytest.mark.parametrize(("kind", "form"), REFUSED, ids=lambda value: getattr(value, "name", value))
def test_what_is_left_out(kind: Kind, form: str) -> None:
    with pytest.raises(DataError) as error:
        document(kind, form)
    assert error.value.message.startswith("data.jsonl:1: ")
    assert kind.refused[form] in error.value.message
