"""Each loader says which weights it would load: by a digest that is the same elsewhere, and another for others."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fitune import ModelLoader
from fitune.testing import open_registry


def _directory(place: Path) -> Path:
    place.mkdir(parents=True)
    (place / "config.json").write_text("{}", encoding="utf-8")
    (place / "model.safetensors").write_bytes(b"weights")
    return place


def _file(place: Path) -> Path:
    place.parent.mkdir(parents=True)
    place.write_bytes(b"GGUF and weights")
    return place


@pytest.mark.parametrize(
    ("name", "make", "weights"),
    [("hf", _directory, "model.safetensors"), ("deepseek-7b", _directory, "model.safetensors"), ("gguf", _file, "")],
)
def test_a_fingerprint_is_of_the_weights(tmp_path: Path, name: str, make: Callable[[Path], Path], weights: str) -> None:
    record: ModelLoader[Any] = open_registry().find(ModelLoader, name)
    assert record.fingerprint is not None
    one, other = make(tmp_path / "one" / "model.gguf"), make(tmp_path / "other" / "named.gguf")
    before = record.fingerprint(record.options(path=one))
    assert before is not None
    assert before.startswith("sha256:")
    assert record.fingerprint(record.options(path=other)) == before
    file = other / weights if weights else other
    shutil.copy(file, tmp_path / "kept")
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    assert record.fingerprint(record.options(path=other)) != before
    shutil.copy(tmp_path / "kept", file)
    assert record.fingerprint(record.options(path=other)) == before
