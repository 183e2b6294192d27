"""Which files hold a model's weights: in a directory, and in the hub's cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fitune import ModelError
from fitune_plugins.loaders.weight_files import of_weights, on_this_machine

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def sharded(directory: Path, *there: str) -> Path:
    """A directory with an index of two shards, of which these are there."""
    directory.mkdir(parents=True)
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (directory / "other.safetensors").write_bytes(b"x")
    for name in there:
        (directory / name).write_bytes(b"x")
    return directory


def names(files: list[Path]) -> list[str]:
    return [file.name for file in files]


def test_shards_are_those_of_the_index(tmp_path: Path) -> None:
    model = sharded(tmp_path / "model", "model-1.safetensors", "model-2.safetensors")
    whole = ["model.safetensors.index.json", "model-1.safetensors", "model-2.safetensors"]
    assert names(of_weights(model)) == names(on_this_machine(None, model, "main")) == whole
    assert names(on_this_machine(str(model), None, "main")) == whole
    (model / "model.safetensors").write_bytes(b"x")  # which transformers takes first
    assert names(of_weights(model)) == ["model.safetensors"]


def test_of_the_hub_what_is_in_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert on_this_machine("some/model", None, "main") == []
    home = tmp_path / "models--some--model"
    snapshot = sharded(home / "snapshots" / COMMIT, "model-2.safetensors")
    assert on_this_machine("some/model", None, "main") == []  # of which nobody knows the commit
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    found = on_this_machine("some/model", None, "main")
    assert names(found) == ["model.safetensors.index.json", "model-2.safetensors"]
    assert on_this_machine("some/model", None, COMMIT) == found
    assert {file.parent for file in found} == {snapshot}


@pytest.mark.parametrize("id", ["a//b", "../up"])
def test_what_is_no_name_is_told(id: str) -> None:
    with pytest.raises(ModelError, match="is no name of a model"):
        on_this_machine(id, None, "main")
