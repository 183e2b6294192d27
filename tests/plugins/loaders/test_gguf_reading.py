"""A GGUF file's header is read once, and quickly; what is read is what gguf's own reader reads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from transformers import modeling_gguf_pytorch_utils as reading

from fitune_plugins.loaders import gguf_reading
from fitune_plugins.loaders.gguf_reading import read_once


@pytest.fixture(autouse=True)
def _nothing_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_reading, "_read", {})
    monkeypatch.setattr(gguf_reading, "_readers", {})


@pytest.fixture(params=[gguf.GGUFEndian.LITTLE, gguf.GGUFEndian.BIG], ids=["little", "big"])
def file(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """With a value of each kind, and two tensors."""
    path = tmp_path / "tiny.gguf"
    writer: Any = gguf.GGUFWriter(path, "llama", endianess=request.param)
    writer.add_string("general.name", "tiny né")
    writer.add_uint32("llama.block_count", 2)
    writer.add_float32("llama.rope.freq_base", 1e4)
    writer.add_bool("tokenizer.ggml.add_bos_token", False)
    writer.add_array("tokenizer.ggml.tokens", ["a", "", "ünd", "中"])
    writer.add_array("tokenizer.ggml.scores", [0.5, -1.0])
    writer.add_array("tokenizer.ggml.token_type", [1, 6, 3, 4])
    writer.add_array("llama.none", [])
    writer.add_tensor("output.weight", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("output_norm.weight", np.ones(3, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_it_reads_what_the_reader_reads(file: Path) -> None:
    own = gguf.GGUFReader(str(file))
    with read_once():
        quick: Any = gguf.GGUFReader(str(file))
    assert type(quick) is not type(own)
    parsed: Any = getattr(reading, "_gguf_parse_value")  # noqa: B009
    assert list(quick.fields) == list(own.fields)
    for name, field in own.fields.items():
        mine = quick.fields[name]
        assert (mine.offset, mine.data, mine.types) == (field.offset, field.data, field.types)
        for part, other in zip(mine.parts, field.parts, strict=True):
            assert isinstance(part, memoryview) or part.dtype == other.dtype
            assert bytes(part) == bytes(other)
        values = [parsed(mine.parts[at], mine.types) for at in mine.data]
        assert values == [parsed(field.parts[at], field.types) for at in field.data]
    assert quick.fields["tokenizer.ggml.tokens"].contents() == ["a", "", "ünd", "中"]
    for one, two in zip(quick.tensors, own.tensors, strict=True):
        assert (one.name, one.data.dtype, one.data.shape) == (two.name, two.data.dtype, two.data.shape)
        assert np.array_equal(one.data, two.data)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """What transformers' own function was asked for, each time: the tensors, or not."""
    seen: list[bool] = []

    def load(path: Any, return_tensors: bool = False, **named: Any) -> dict[str, list[int]]:
        seen.append(return_tensors)
        return {"config": [len(seen)]}

    monkeypatch.setattr(reading, "load_gguf_checkpoint", load)
    yield seen
    here: Any = reading.load_gguf_checkpoint
    assert here is load
    assert gguf.GGUFReader.__name__ == "GGUFReader"


def test_a_file_is_read_once_while_it_is_the_same(file: Path, asked: list[bool]) -> None:
    for _ in range(2):
        with read_once():
            found = reading.load_gguf_checkpoint(file, return_tensors=False)
            assert found == {"config": [1]}
            found["config"].append(5)  # whoever is given it may change it
    assert asked == [False]
    with read_once():
        reading.load_gguf_checkpoint(file, return_tensors=True)
    assert asked == [False, True]
    os.utime(file, ns=(1, 1))
    with read_once():
        assert reading.load_gguf_checkpoint(file) == {"config": [3]}


def test_one_reader_serves_until_the_weights_are_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    own = gguf.GGUFReader.__init__

    def counted(reader: Any, path: Any, *rest: Any) -> None:
        made.append(str(path))
        own(reader, path, *rest)

    def load(path: Any, return_tensors: bool = False, **named: Any) -> list[str]:
        return list(gguf.GGUFReader(str(path)).fields)

    monkeypatch.setattr(gguf.GGUFReader, "__init__", counted)
    monkeypatch.setattr(reading, "load_gguf_checkpoint", load)
    for tensors in (False, True):
        with read_once():
            assert "llama.block_count" in reading.load_gguf_checkpoint(file, return_tensors=tensors)
    assert made == [str(file)]
    assert gguf_reading._readers == {}
    os.utime(file, ns=(1, 1))
    with read_once():
        reading.load_gguf_checkpoint(file)
    assert len(made) == 2


def test_a_table_of_names_is_made_once() -> None:
    kind = gguf.MODEL_ARCH.LLAMA
    with read_once():
        first = gguf.get_tensor_name_map(kind, 2)
        assert gguf.get_tensor_name_map(kind, 2) is first
        assert gguf.get_tensor_name_map(kind, 1) is not first
    assert gguf.get_tensor_name_map(kind, 2).mapping == first.mapping
    assert gguf.get_tensor_name_map(kind, 2) is not first


def test_a_failure_leaves_all_as_it_was(asked: list[bool]) -> None:
    with pytest.raises(ValueError, match="of whoever loads"), read_once():
        raise ValueError("of whoever loads")
    with read_once(), pytest.raises(FileNotFoundError):
        reading.load_gguf_checkpoint("nowhere.gguf")
    assert asked == []
