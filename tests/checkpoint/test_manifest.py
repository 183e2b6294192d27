"""The manifest of a checkpoint: every file is covered by it, and it covers itself."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fitune.checkpoint.manifest import FORMAT, NAME, damage, write_manifest
from fitune.plugin.digest import digest_of


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    directory = tmp_path / "step-4"
    (directory / "inner").mkdir(parents=True)
    (directory / "state.json").write_text('{"a": 1}')
    (directory / "inner" / "tensors").write_bytes(bytes(range(256)))
    (directory / "empty").write_bytes(b"")
    write_manifest(directory, 4)
    return directory


def test_what_is_as_it_was_written_is_sound(checkpoint: Path) -> None:
    assert damage(checkpoint) is None
    values = json.loads((checkpoint / NAME).read_text())
    assert (values["format"], values["step"]) == (FORMAT, 4)
    assert {name: one["bytes"] for name, one in values["files"].items()} == {
        "state.json": 8, "inner/tensors": 256, "empty": 0,
    }  # fmt: skip


def test_it_tells_the_bytes_of_all(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(1000))
    total = write_manifest(tmp_path, 1)
    assert total == 1000 + (tmp_path / NAME).stat().st_size


def test_files_that_it_does_not_name_are_not_looked_at(checkpoint: Path) -> None:
    (checkpoint / "note.txt").write_text("mine")
    assert damage(checkpoint) is None


def test_another_name_is_another_step(checkpoint: Path) -> None:
    other = checkpoint.rename(checkpoint.with_name("step-5"))
    assert damage(other) == "is the checkpoint of step 4"
    assert damage(other.rename(other.with_name("copied"))) is None


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a byte": (lambda d: (d / "inner" / "tensors").write_bytes(bytes(256)), "inner/tensors is not what was written"),
    "shorter": (lambda d: (d / "state.json").write_text("{"), "state.json has 1 bytes of 8"),
    "longer": (lambda d: (d / "empty").write_text("x"), "empty has 1 bytes of 0"),
    "gone": (lambda d: (d / "state.json").unlink(), "state.json is missing"),
    "no manifest": (lambda d: (d / NAME).unlink(), f"{NAME} is missing"),
    "half a manifest": (lambda d: (d / NAME).write_text((d / NAME).read_text()[:50]), f"{NAME} cannot be read"),
    "binary": (lambda d: (d / NAME).write_bytes(b"\xff\xfe"), f"{NAME} cannot be read"),
    "a list": (lambda d: (d / NAME).write_text("[]"), f"{NAME} cannot be read"),
    "deep": (lambda d: (d / NAME).write_text("[" * 100_000), f"{NAME} cannot be read"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_what_is_damaged_is_told(checkpoint: Path, kind: str) -> None:
    change, said = DAMAGES[kind]
    change(checkpoint)
    found = damage(checkpoint)
    assert found is not None
    assert found.startswith(said)


def _changed(checkpoint: Path, **values: Any) -> None:
    """Another manifest, with the digest of the first."""
    file = checkpoint / NAME
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}, indent=1) + "\n")


def test_it_covers_itself(checkpoint: Path) -> None:
    _changed(checkpoint, step=5)
    assert damage(checkpoint) == f"{NAME} is damaged"
    _changed(checkpoint, step=4, files={})
    assert damage(checkpoint) == f"{NAME} is damaged"


def test_another_format_is_said_to_be_one(checkpoint: Path) -> None:
    _changed(checkpoint, format=FORMAT + 1)
    assert damage(checkpoint) == f"{NAME} is of format {FORMAT + 1}, and this release reads {FORMAT}"


def test_every_bit_of_every_file_counts(checkpoint: Path) -> None:
    for file in [place for place in checkpoint.rglob("*") if place.is_file()]:
        whole = file.read_bytes()
        for at in range(0, len(whole), 97):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            assert damage(checkpoint) is not None, (file.name, at)
        file.write_bytes(whole)
    assert damage(checkpoint) is None


def test_digests_are_sha256_whatever_the_size(tmp_path: Path) -> None:
    for size in (0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1):
        content = os.urandom(size)
        (tmp_path / "file").write_bytes(content)
        assert digest_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()
