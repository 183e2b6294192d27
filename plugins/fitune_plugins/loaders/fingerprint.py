"""What a base model is, told in less than a second: the hub's commit, or a digest of files of which parts are read.

Of a large file its size, its header and a block of every tensor count, so that weights which were trained anew are seen
wherever they were; what changes a few numbers of a large tensor alone is not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from fitune import ModelError
from fitune_plugins.loaders.remote_code import COMMIT
from fitune_plugins.loaders.weight_files import of_weights

WHOLE = 32 << 20
"""Bytes of a file up to which all of it is read."""

BLOCK = 4096
"""Bytes that are read at each place of a larger one."""

PLACES = 1024
"""Most places at which a larger one is read."""

ENDS = 1 << 20
"""Bytes at both ends of a larger one that is no safetensors: other formats have their tables there."""


def of_hub(id: str, revision: str) -> str | None:
    """The commit that a revision stands for, as the hub's cache has it; None where a cache cannot tell.

    Raises `ModelError` if the model is not there.
    """
    from transformers.utils.hub import cached_file

    if Path(id).is_dir():  # transformers takes it for one, too
        return of_directory(Path(id))
    try:
        file = cached_file(id, "config.json", revision=revision)
    except Exception as error:  # the hub's client raises kinds of its own
        line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(f"the configuration of {id} cannot be loaded: {line}") from error
    parts = Path(file).parts if file else ()  # .../snapshots/COMMIT/config.json
    return next((part for part in reversed(parts) if COMMIT.fullmatch(part)), None)


def of_directory(directory: Path, *, code: bool = False) -> str:
    """A digest of a model's configuration and weights, and of the `code` that it may run; wherever it lies.

    Raises `ModelError` if it cannot be read.
    """
    runs = sorted(directory.glob("*.py")) if code else []
    return of_files([directory / "config.json", *runs, *of_weights(directory)])


def of_files(files: Iterable[Path]) -> str:
    """A digest of files, one behind the other, whatever they are called. Raises `ModelError` if one cannot be read."""
    digest = hashlib.sha256()
    for file in files:
        try:
            if file.exists() and not file.is_file():  # a pipe would be waited for
                raise OSError(None, "it is no file")
            with file.open("rb") as opened:
                digest.update(f"{file.stat().st_size}\n".encode())
                for part in _parts(opened, file):
                    digest.update(part)
        except OSError as error:
            raise ModelError(f"{file} cannot be read: {error.strerror or error}. Get a whole copy") from error
    return f"sha256:{digest.hexdigest()}"


def _parts(opened: BinaryIO, file: Path) -> Iterator[bytes]:
    """What of a file counts."""
    size = file.stat().st_size
    if size <= WHOLE:
        yield opened.read()
        return
    spans = _of_tensors(opened, size) if file.suffix == ".safetensors" else []
    for first, length in spans or _evenly(size):
        opened.seek(first)
        yield opened.read(length)


def _evenly(size: int) -> list[tuple[int, int]]:
    """Both ends of a file and places between them: (where, how many bytes)."""
    between = range(ENDS, size - ENDS, max(1, (size - 2 * ENDS) // PLACES))
    return [(0, ENDS), (size - ENDS, ENDS), *((place, BLOCK) for place in between)]


def _of_tensors(opened: BinaryIO, size: int) -> list[tuple[int, int]]:
    """The header of a safetensors file and a place in the midst of its tensors; none where it is damaged."""
    length = int.from_bytes(opened.read(8), "little")
    try:
        header = json.loads(opened.read(min(length, size)))
        spans = sorted(header[name]["data_offsets"] for name in header if name != "__metadata__")
        middles = [8 + length + first + max(0, last - first - BLOCK) // 2 for first, last in spans]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
    if not all(isinstance(place, int) and 0 <= place <= size for place in middles):
        return []
    return [(0, 8 + length), *((place, BLOCK) for place in middles[:: -(-len(middles) // PLACES) or 1])]
