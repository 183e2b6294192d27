"""Parts of rows: each label counts in exactly one of them, and documents stay what they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fitune import IGNORED, Batch, MemoryStrategy, ModelError, Plan
from fitune.cli.main import main
from fitune.compose.objective import by_document
from fitune.testing import open_registry
from fitune_plugins.memory.context_parallel_attention import mask_of
from fitune_plugins.memory.context_parallel_rows import part_of
from support.packed import batch_of, documents, two_rows

RECORD = open_registry().find(MemoryStrategy, "context-parallel")


@pytest.mark.parametrize("count", [2, 3, 4, 7])
@pytest.mark.parametrize("make", [two_rows, lambda: batch_of(documents([23, 5, 17]), 23)])
def test_each_target_counts_in_one_part(count: int, make: Callable[[], Batch]) -> None:
    batch = make()
    parts = [part_of(batch, count, place) for place in range(count)]
    assert {part.input_ids.shape for part in parts} == {(len(batch.labels), -(-batch.labels.shape[1] // count) + 1)}
    assert [part.begin for part in parts] == [place * (parts[0].input_ids.shape[1] - 1) for place in range(count)]
    pairs = [
        torch.stack([part.input_ids[:, :-1], part.labels[:, 1:]], dim=-1)[part.labels[:, 1:] != IGNORED]
        for part in parts
    ]
    assert [len(pair) for pair in pairs] == [part.targets for part in parts]
    whole = torch.stack([batch.input_ids[:, :-1], batch.labels[:, 1:]], dim=-1)[batch.labels[:, 1:] != IGNORED]
    assert sorted(torch.cat(pairs).tolist()) == sorted(whole.tolist()), "a token, and what it is to say next"


def test_documents_are_those_of_whole_rows() -> None:
    batch = two_rows()
    first, second = (part_of(batch, 5, place) for place in (0, 4))
    assert first.lengths == second.lengths == (13, 9, 2, 1, 8, 6, 5, 5, 1), "with the padding of each row to 25 tokens"
    assert batch.positions is not None
    assert second.positions is not None
    assert second.positions.tolist() == [[7, 8, 0, 1, 0, 1], [1, 2, 3, 4, 0, 1]]
    inputs = second.inputs()
    assert inputs["cu_seq_lens_q"].tolist() == [0, 13, 22, 24, 25, 33, 39, 44, 49, 50]
    assert inputs["row_begin"] == 20


def test_a_part_of_one_document_says_where_it_begins() -> None:
    part = part_of(batch_of(documents([12]), 12), 3, 2)
    inputs = part.inputs()
    assert inputs["position_ids"].tolist() == [[8, 9, 10, 11, 12]]
    assert inputs["row_begin"] == 8
    assert part.labels[0, -1] == IGNORED, "nothing comes behind the row"


def test_masks_of_whole_rows() -> None:
    query = torch.empty(2, 1, 6, 4)
    assert mask_of(query, None, None) is None
    assert mask_of(query, None, 6) is None
    window = mask_of(query, None, 2)
    assert window is not None
    place = torch.arange(6)
    assert window[0, 0].equal((place[:, None] >= place) & (place[:, None] - place < 2))
    ends = torch.tensor([0, 2, 6, 9, 12], dtype=torch.int32)
    mask = mask_of(query, ends, None)
    assert mask is not None
    lower = torch.ones(6, 6, dtype=torch.bool).tril()
    assert mask[0, 0].equal(lower & torch.block_diag(torch.ones(2, 2), torch.ones(4, 4)).bool())
    assert mask[1, 0].equal(lower & torch.block_diag(torch.ones(3, 3), torch.ones(3, 3)).bool())


def test_documents_cannot_be_summed_of_a_part() -> None:
    part = part_of(two_rows(), 2, 0)
    with pytest.raises(ModelError, match="of which each process has a part"):
        by_document(torch.zeros(part.labels.shape), part)


def test_one_process_is_told_that_nothing_is_split() -> None:
    strategy = RECORD.make(RECORD.options())
    plan = strategy.plan(Plan())
    assert plan.context_parallel == 1
    assert plan.notices == ("context-parallel has no effect: there is one process. Start several with --gpus",)
    batch = two_rows()
    assert strategy.part(batch) is batch


def test_objectives_of_whole_documents_are_refused(recipe_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = ['memory.strategy=[{use="context-parallel"}]', 'objective={use="dpo"}']
    with pytest.raises(SystemExit) as ended:
        main(["check", str(recipe_path), *(part for one in sets for part in ("--set", one))])
    assert ended.value.code == 2
    assert '"context-parallel" needs "sft": others look at documents as a whole' in capsys.readouterr().err
