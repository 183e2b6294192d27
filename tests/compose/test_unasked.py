"""transformers does not ask the device for documents that the host knows of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers.masking_utils as masks
from torch import Tensor, nn

from fitune import Batch
from fitune.compose.loss import plain_loss
from fitune.compose.masks import DOCUMENTS, TRACING, unasked
from support.fast_models import plain_model
from support.tiny import loss_and_gradients, make_batch

ROWS = make_batch([(list(range(5, 15)), list(range(5, 15))), (list(range(30, 35)), list(range(30, 35)))])
LENGTHS = (4, 6)
PACKED = Batch(
    input_ids=ROWS.input_ids[:1],
    labels=ROWS.labels[:1],
    targets=9,
    tokens=10,
    positions=torch.cat([torch.arange(n) for n in LENGTHS])[None],
    lengths=LENGTHS,
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Calls of transformers' own functions; afterwards these must stand where they stood."""
    calls: list[str] = []

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*inputs: Any) -> Any:
            calls.append(name)
            return function(*inputs)

        return call

    mine = {name: counted(name, getattr(masks, name)) for name in (DOCUMENTS, TRACING)}
    for name, function in mine.items():
        monkeypatch.setattr(masks, name, function)
    yield calls
    assert {name: getattr(masks, name) for name in mine} == mine


def test_the_question_is_there_and_not_asked(asked: list[str]) -> None:
    model = plain_model("llama")
    wanted = loss_and_gradients(plain_loss, model, ROWS)
    assert DOCUMENTS in asked  # or this transformers asks by another name
    asked.clear()
    found = loss_and_gradients(unasked(plain_loss), model, ROWS)
    assert not asked
    assert torch.equal(found[0], wanted[0])
    assert all(torch.equal(one, other) for one, other in zip(found[1], wanted[1], strict=True))


def test_packed_rows_are_asked_about(asked: list[str]) -> None:
    model = plain_model("llama")
    wanted = plain_loss(model, PACKED)
    asked.clear()
    assert torch.equal(unasked(plain_loss)(model, PACKED), wanted)
    assert DOCUMENTS in asked


def test_windows_have_their_mask(asked: list[str]) -> None:
    """Of rows that are longer than the window, and of some that are shorter."""
    for window in (4, 64):
        model = plain_model("mistral", sliding_window=window)
        wanted = plain_loss(model, ROWS)
        asked.clear()
        assert torch.equal(unasked(plain_loss)(model, ROWS), wanted)
        assert not asked


def test_after_an_error_all_is_as_before(asked: list[str]) -> None:
    def fails(model: nn.Module, batch: Batch) -> Tensor:
        assert masks.find_packed_sequence_indices(torch.zeros(1, 4)) is None
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        unasked(fails)(nn.Linear(1, 1), ROWS)
    assert not asked


def test_a_transformers_without_such_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(masks, DOCUMENTS)
    batches: list[Batch] = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        batches.append(batch)
        return torch.zeros(())

    unasked(loss)(nn.Linear(1, 1), ROWS)
    assert batches == [ROWS]
    assert not hasattr(masks, DOCUMENTS)
