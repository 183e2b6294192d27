"""Extras of documents: kept with prepared rows, joined, padded and moved with them; rows without any are as ever."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
import torch

from fitune import Batch, DataContext, DataError, DataStage, Example, Origin
from fitune.data.cache import Rows
from fitune.data.cache_writer import Writer
from fitune.testing import open_registry
from fitune_plugins.speed.cuda_graph_shapes import Shapes
from support.examples import example, plain

REGISTRY = open_registry()

Extras = Mapping[str, tuple[float, ...]]


def pair(number: int, lengths: tuple[int, ...], extras: Extras) -> Example:
    return replace(example(number, sum(lengths)), lengths=lengths, extras=extras)


def stored(examples: list[Example], directory: Path) -> tuple[Rows, str]:
    writer = Writer(directory / "rows.arrow")
    writer.write(iter(examples))
    (directory / "meta.json").write_text(json.dumps({"files": list(writer.files)}), encoding="utf-8")
    return Rows(directory), writer.digest


def stage(name: str, length: int = 16) -> Any:
    record = REGISTRY.find(DataStage, name)
    tokenizer = cast(Any, SimpleNamespace(pad_token_id=0))
    return record.make(record.options(), DataContext(tokenizer=tokenizer, length=length, seed=0))


def test_the_cache_keeps_them(tmp_path: Path) -> None:
    written = [
        pair(1, (2, 3), {"role": (1.0, -1.0), "reference": (-7.123456789, 0.1)}),
        replace(example(2), extras={"role": (2.0,), "reference": (-3.5,)}),
    ]
    rows, _ = stored(written, tmp_path)
    assert list(map(plain, rows)) == list(map(plain, written))


def test_rows_without_any_are_written_as_ever(tmp_path: Path) -> None:
    """The digest is the one that version 0.1 gave to these rows, by which runs and their data know one another."""
    _, digest = stored([pair(1, (2, 3), {}), example(2)], tmp_path)
    with pa.OSFile(str(tmp_path / "rows.arrow")) as file:
        names = pa.ipc.open_file(file).schema.names
    assert names == ["input_ids", "labels", "lengths", "file", "row"]
    assert digest == "bd80bfba0895d08c74293662710356abe230c8ae74271dfa04f99884cd531730"


def test_other_extras_are_other_rows(tmp_path: Path) -> None:
    digests = set()
    for number, extras in enumerate([{}, {"role": (1.0, -1.0)}, {"role": (1.0, 2.0)}, {"rule": (1.0, -1.0)}]):
        (tmp_path / str(number)).mkdir()
        digests.add(stored([pair(1, (2, 3), extras)], tmp_path / str(number))[1])
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({}, "its extras are none, but those of the rows before it are role"),
        ({"role": (1.0, 1.0), "more": (0.0, 0.0)}, "its extras are more, role, but those"),
        ({"role": (1.0,)}, 'f:3: extra "role" has 1 numbers for 2 documents'),
    ],
)
def test_extras_that_do_not_fit(second: Extras, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        stored([pair(1, (2, 3), {"role": (1.0, -1.0)}), pair(2, (2, 3), second)], tmp_path)


def test_packed_rows_have_those_of_their_documents() -> None:
    one, other = pair(1, (2, 3), {"role": (1.0, -1.0)}), pair(2, (4, 4), {"role": (-1.0, 2.0)})
    (row,) = stage("pack")(iter([one, other]))
    assert (row.lengths, row.extras) == ((4, 4, 2, 3), {"role": (-1.0, 2.0, 1.0, -1.0)})


def batch_of(*examples: Example) -> Batch:
    batch = next(stage("pad")(iter([examples])))
    assert isinstance(batch, Batch)
    return batch


def test_documents_of_padding_have_none() -> None:
    batch = batch_of(pair(1, (2, 3), {"role": (1.0, -1.0)}), pair(2, (2, 7), {"role": (1.0, -1.0)}))
    assert batch.lengths == (2, 3, 4, 2, 7)
    assert batch.extras["role"].tolist() == [1, -1, 0, 1, -1]
    assert batch.extras["role"].dtype == torch.float32


def test_rows_of_one_document_have_one_each() -> None:
    batch = batch_of(*(replace(example(n, n), extras={"role": (float(n),)}) for n in (2, 5)))
    assert (batch.lengths, batch.extras["role"].tolist()) == ((), [2, 5])


def test_they_move_with_the_batch() -> None:
    batch = batch_of(pair(1, (2, 3), {"role": (1.0, -1.0)}))
    assert list(batch.tensors()) == ["input_ids", "labels", "positions", "extras.role"]
    moved = batch.to(torch.device("meta"))
    assert {name: (str(t.device), t.shape) for name, t in moved.tensors().items()} == {
        name: ("meta", t.shape) for name, t in batch.tensors().items()
    }


def test_padding_for_recorded_steps_has_none() -> None:
    """Longer rows get documents of padding each, and documents of no token come behind them all."""
    batch = batch_of(pair(1, (30, 33), {"role": (1.0, -1.0)}), pair(2, (20, 33), {"role": (-1.0, 2.0)}))
    padded = Shapes(length=2048, more_targets=False).padded(batch)
    assert padded.ends is not None
    numbers = padded.extras["role"].tolist()
    assert len(numbers) == len(padded.ends) - 1
    lengths = padded.ends.diff().tolist()
    assert [(n, tokens) for n, tokens in zip(numbers, lengths, strict=True) if n] == [
        (1, 30), (-1, 33), (-1, 20), (2, 33)
    ]  # fmt: skip
    assert sum(lengths) == padded.input_ids.numel() > batch.input_ids.numel()


def test_an_example_counts_its_documents() -> None:
    origin = Origin(file="f", row=1)
    ids = np.array([1], dtype=np.int32)
    assert Example(input_ids=ids, labels=ids, origin=origin).documents == 1
    assert pair(1, (2, 3), {}).documents == 2
