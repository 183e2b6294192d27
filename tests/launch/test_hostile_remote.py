"""What somebody else may have put where a run is kept: none of it is written outside, or ends in a traceback."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from fitune import RunError
from fitune.launch.remote import Remote

CONTENT = b"theirs"
OWN = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def remote(tmp_path: Path) -> Remote:
    """A place with one object, and a secret beside it."""
    (tmp_path / "bucket" / "objects").mkdir(parents=True)
    (tmp_path / "bucket" / "objects" / OWN).write_bytes(CONTENT)
    (tmp_path / "secret").write_text("secret", encoding="utf-8")
    return Remote(f"file://{tmp_path / 'bucket'}", tmp_path / "home" / "run")


def head(tmp_path: Path, text: str) -> None:
    (tmp_path / "bucket" / "head.json").write_text(text, encoding="utf-8")


def of(files: Any, step: Any = 1) -> str:
    return json.dumps({"format": 1, "step": step, "files": files})


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000 + "]" * 200_000,
        '{"format": 1, "files": {}, "step": 1e999}',
        '{"format": 1, "files": {}, "step": NaN}',
        '{"format": 1, "files": {}, "step": ' + "9" * 5000 + "}",
        of([]), of(None), of({}, None), "[]", "null", "", "\0",
    ],
    ids=lambda text: text[:50],
)  # fmt: skip
def test_a_head_that_cannot_be_worked_with_is_none(remote: Remote, tmp_path: Path, text: str) -> None:
    head(tmp_path, text)
    assert remote.fetch() is None
    assert not remote.directory.exists()


@pytest.mark.parametrize(
    "name",
    ["../out", "a/../../out", "/etc/out", "..", ".", "", "a\\..\\..\\out", "a\0b", "a\nb", "\x1b]52;c;eA==\x07", "a/"],
    ids=ascii,
)
def test_names_are_those_of_files_in_the_run(remote: Remote, tmp_path: Path, name: str) -> None:
    head(tmp_path, of({"identity.json": OWN, name: OWN}))
    if name == "a/":  # the same as "a"
        assert remote.fetch() is not None
        return
    with pytest.raises(RunError, match=r"is no name of a file|leads out of the run"):
        remote.fetch()
    assert not remote.directory.exists()
    assert {place.name for place in tmp_path.iterdir()} == {"bucket", "secret", "home"}


@pytest.mark.parametrize("digest", ["../../secret", "", "..", "0" * 63, "g" * 64, "1", None])
def test_digests_are_no_paths(remote: Remote, tmp_path: Path, digest: object) -> None:
    head(tmp_path, of({"identity.json": digest}))
    with pytest.raises(RunError, match=r"identity\.json has no digest"):
        remote.fetch()


@pytest.mark.parametrize("files", [{"a": OWN, "a/b": OWN}, {"a/b": OWN, "a": OWN}], ids=str)
def test_a_file_that_is_a_directory_too(remote: Remote, tmp_path: Path, files: dict[str, str]) -> None:
    head(tmp_path, of(files))
    with pytest.raises(RunError):
        remote.fetch()
    assert not remote.directory.exists()
