"""What becomes of rows that are longer than `[train] length`."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any, Literal, cast

import numpy as np
import pytest

from fitune import IGNORED, DataContext, DataStage, Example, Origin
from fitune.plugin.registry import Registry

Policy = Literal["right", "left", "split", "drop"]


def run(registry: Registry, policy: Policy, *lengths: int) -> tuple[list[Example], Counter[str]]:
    """Rows of these lengths, of which the second half is trained on, through the stage at length 4."""
    counts: Counter[str] = Counter()

    def count(what: str) -> None:
        counts[what] += 1

    record: DataStage[Any] = registry.find(DataStage, "truncate")
    context = DataContext(tokenizer=cast(Any, SimpleNamespace()), length=4, seed=0, count=count)
    return list(record.make(record.options(policy=policy), context)(map(row, lengths))), counts


def row(length: int) -> Example:
    ids = np.arange(length, dtype=np.int32)
    labels = np.where(ids >= length // 2, ids, IGNORED).astype(np.int32)
    return Example(input_ids=ids, labels=labels, origin=Origin(file="f", row=length))


@pytest.mark.parametrize(
    ("policy", "kept", "note"),
    [
        ("right", [[0, 1, 2, 3]], "rows cut at the right"),
        ("left", [[5, 6, 7, 8]], "rows cut at the left"),
        ("split", [[0, 1, 2, 3], [4, 5, 6, 7], [8]], "rows split"),
        ("drop", [], "rows dropped: too long"),
    ],
)
def test_each_policy(registry: Registry, policy: Policy, kept: list[list[int]], note: str) -> None:
    examples, counts = run(registry, policy, 4, 9, 2)
    assert [e.input_ids.tolist() for e in examples] == [[0, 1, 2, 3], *kept, [0, 1]]
    assert counts == {note: 1}


@pytest.mark.parametrize("policy", ["right", "left", "split"])
def test_labels_stay_with_their_tokens(registry: Registry, policy: Policy) -> None:
    for example in run(registry, policy, 9)[0]:
        trained = example.labels != IGNORED
        assert (example.labels[trained] == example.input_ids[trained]).all()
        assert trained.tolist() == [token >= 4 for token in example.input_ids.tolist()]
        assert example.origin.row == 9


def test_a_split_loses_no_token(registry: Registry) -> None:
    examples, _ = run(registry, "split", 23)
    assert np.concatenate([e.input_ids for e in examples]).tolist() == list(range(23))
