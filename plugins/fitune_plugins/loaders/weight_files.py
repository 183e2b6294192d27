"""Which files hold a model's weights, by the rules of transformers; nothing is fetched."""

from __future__ import annotations

from pathlib import Path

from fitune import ModelError
from fitune_plugins.text_files import json_of

INDICES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Where transformers looks for weights, in its order."""


def of_weights(directory: Path) -> list[Path]:
    """The files of weights that transformers takes of all that are in a directory, an index of them first. Raises
    `ModelError` for an index that cannot be read.
    """
    for name in INDICES:
        file = directory / name
        if file.is_file():
            return [file, *(directory / shard for shard in _shards(file))] if name.endswith(".json") else [file]
    return sorted([*directory.glob("*.safetensors"), *directory.glob("*.bin")])


def on_this_machine(id: str | None, path: Path | None, revision: str) -> list[Path]:
    """Of a directory, or else of a model of the hub, those that are in its cache. Raises `ModelError`."""
    directory = path or _in_cache(str(id), revision)
    return [] if directory is None else [file for file in of_weights(directory) if file.is_file()]


def _in_cache(id: str, revision: str) -> Path | None:
    """Where the hub's cache has a model; None where it has not."""
    if Path(id).is_dir():  # transformers takes it for one, too
        return Path(id)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(id, "config.json", revision=revision)
    except HFValidationError as error:
        raise ModelError(f"{id} is no name of a model: {error}") from error
    return Path(config).parent if isinstance(config, str) else None


def _shards(index: Path) -> list[str]:
    try:
        names = sorted(set(json_of(index)["weight_map"].values()))
        if not all(isinstance(name, str) for name in names):
            raise ValueError("a shard's name is no text")
        return names
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} cannot be read: {error}. Get a whole copy") from error
