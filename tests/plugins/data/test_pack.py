"""Stage `pack` gives full rows of whole documents; `pad` says where each document of a batch begins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

from fitune import IGNORED, Batch, DataContext, DataError, DataStage, Example, Origin
from fitune.compose.loss import plain_loss
from fitune.testing import open_registry

PAD = 99
REGISTRY = open_registry()


def make(name: str, *, length: int = 16, **options: object) -> Any:
    """A stage as a run makes it."""
    record = REGISTRY.find(DataStage, name)
    tokenizer = cast(Any, SimpleNamespace(pad_token_id=PAD))
    return record.make(record.options(**options), DataContext(tokenizer=tokenizer, length=length, seed=0))


def example(tokens: int, first: int = 1, *, prompt: int = 0, row: int = 1) -> Example:
    """Tokens that count up from `first`; those behind the prompt are trained on."""
    ids = np.arange(first, first + tokens, dtype=np.int32)
    labels = np.where(np.arange(tokens) < prompt, IGNORED, ids).astype(np.int32)
    return Example(input_ids=ids, labels=labels, origin=Origin(file="a.jsonl", row=row))


def batch_of(examples: Sequence[Example], to: str = "longest") -> Batch:
    batch = next(make("pad", to=to)(iter([examples])))
    assert isinstance(batch, Batch)
    return batch


def test_a_packed_row() -> None:
    long, short = example(9, 10, prompt=2, row=1), example(5, 50, row=2)
    (row,) = make("pack")(iter([short, long]))
    assert row.input_ids.tolist() == [*range(10, 19), *range(50, 55)]
    assert row.labels.tolist() == [IGNORED, IGNORED, *range(12, 19), IGNORED, *range(51, 55)]
    assert row.lengths == (9, 5)
    assert (row.origin, row.targets) == (long.origin, long.targets + short.targets)
    assert (row.input_ids.dtype, row.labels.dtype) == (np.int32, np.int32)
    assert short.labels[0] == 50  # what came in is left as it was


def test_rows_of_one_document_are_left_alone() -> None:
    full = example(16)
    (row,) = make("pack")(iter([full]))
    assert row is full
    assert row.lengths == ()


def test_packed_rows_can_be_packed_again() -> None:
    (first,) = make("pack", length=10)(iter([example(4), example(5)]))
    (row,) = make("pack", length=16)(iter([example(3), first]))
    assert row.lengths == (5, 4, 3)
    assert row.labels[[0, 5, 9]].tolist() == [IGNORED] * 3
    assert row.targets == 4 + 3 + 2


def test_all_tokens_and_targets_stay_and_the_result_is_the_same_each_time() -> None:
    sizes = np.random.default_rng(0).integers(2, 16, 300)
    examples = [example(int(size), 20 * number, prompt=int(size) // 2) for number, size in enumerate(sizes)]
    rows = list(make("pack")(iter(examples)))
    again = list(make("pack")(iter(examples)))
    assert [row.input_ids.tolist() for row in rows] == [row.input_ids.tolist() for row in again]
    tokens = np.concatenate([row.input_ids for row in rows])
    assert sorted(tokens.tolist()) == sorted(np.concatenate([e.input_ids for e in examples]).tolist())
    assert sum(row.targets for row in rows) == sum(e.targets for e in examples)
    assert max(len(row.input_ids) for row in rows) <= 16
    assert sizes.sum() / (16 * len(rows)) > 0.95


def test_a_buffer_at_a_time() -> None:
    """No more than a buffer is read ahead, and documents of two buffers never share a row."""
    read: list[int] = []

    def documents() -> Iterator[Example]:
        for number in range(6):
            read.append(number)
            yield example(4, 10 * number)

    rows = make("pack", buffer_tokens=8)(documents())
    assert next(rows).lengths == (4, 4)
    assert read == [0, 1]
    assert [row.input_ids[0] for row in rows] == [20, 40]


def test_nothing_to_pack() -> None:
    assert list(make("pack")(iter([]))) == []


def test_a_document_that_is_too_long() -> None:
    with pytest.raises(
        DataError, match=r'^a\.jsonl:7: 17 tokens do not fit .* = 16\. Add .* "truncate" before "pack"$'
    ):
        list(make("pack")(iter([example(5), example(17, row=7)])))


def test_positions_of_packed_rows() -> None:
    """Two rows with different numbers of documents; padding is a document of its own."""
    rows = list(make("pack")(iter([example(9), example(6), example(4), example(5), example(3)])))
    assert [row.lengths for row in rows] == [(9, 6), (5, 4, 3)]
    batch = batch_of(rows, to="length")
    assert batch.lengths == (9, 6, 1, 5, 4, 3, 4)
    assert batch.positions is not None
    assert batch.positions.dtype == torch.int64
    assert batch.positions.tolist() == [
        [*range(9), *range(6), 0],
        [*range(5), *range(4), *range(3), *range(4)],
    ]
    assert batch.input_ids[0, 15] == batch.input_ids[0, 14] != PAD
    assert batch.targets == int((batch.labels[:, 1:] != IGNORED).sum()) == 8 + 5 + 4 + 3 + 2
    assert batch.tokens == 15 + 12


def test_padding_is_no_longer_than_the_longest_document() -> None:
    (row,) = make("pack")(iter([example(3), example(2)]))
    batch = batch_of([row], to="length")
    assert batch.lengths == (3, 2, 3, 3, 3, 2)
    assert batch.positions is not None
    assert int(batch.positions.max()) == 2


def test_padding_of_packed_rows_has_a_gradient_where_the_pad_tokens_embedding_is_zero() -> None:
    torch.manual_seed(0)
    config: Any = Gemma3nTextConfig
    model: Any = Gemma3nForCausalLM(
        config(
            vocab_size=128,
            vocab_size_per_layer_input=128,
            hidden_size=16,
            hidden_size_per_layer_input=8,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            num_kv_shared_layers=0,
            head_dim=8,
            laurel_rank=4,
            altup_num_inputs=2,
            layer_types=["sliding_attention", "full_attention"],
            activation_sparsity_pattern=[0.0, 0.0],
            pad_token_id=PAD,
        )
    )
    assert not model.get_input_embeddings().weight[PAD].any()
    (row,) = make("pack")(iter([example(9), example(4)]))
    plain_loss(model, batch_of([row], to="length")).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_a_packed_row_beside_one_that_is_not() -> None:
    (packed,) = make("pack")(iter([example(5), example(4)]))
    batch = batch_of([example(12), packed])
    assert batch.lengths == (12, 5, 4, 3)
    assert batch.positions is not None
    assert batch.positions[1].tolist() == [*range(5), *range(4), *range(3)]


def test_rows_that_are_not_packed_have_no_positions() -> None:
    batch = batch_of([example(5), example(3)])
    assert batch.positions is None
    assert batch.lengths == ()
    assert set(batch.inputs()) == {"input_ids", "use_cache"}


def test_what_a_model_is_called_with() -> None:
    (packed,) = make("pack")(iter([example(5), example(4)]))
    batch = batch_of([packed, example(11)]).to(torch.device("cpu"))
    inputs = batch.inputs()
    assert inputs["position_ids"] is batch.positions
    assert inputs["cu_seq_lens_q"].tolist() == [0, 5, 9, 11, 22]
    assert inputs["cu_seq_lens_q"] is inputs["cu_seq_lens_k"]
    assert inputs["cu_seq_lens_q"].dtype == torch.int32
    assert (inputs["max_length_q"], inputs["max_length_k"]) == (11, 11)
    assert isinstance(inputs["max_length_q"], int)  # no device is asked for it
