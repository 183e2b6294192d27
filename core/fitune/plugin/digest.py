"""The digest of a file, by which it is known again."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

from fitune.plugin.reading import open_file

BLOCK = 1 << 20
"""Bytes that are read at a time."""


def digest_of(file: Path) -> str:
    """The SHA-256 digest of a file, in hexadecimal. Raises `OSError`, also for what is no file."""
    digest = hashlib.sha256()
    with open_file(file) as stream:  # hashlib.file_digest came with Python 3.11
        for block in iter(partial(stream.read, BLOCK), b""):
            digest.update(block)
    return digest.hexdigest()


def digest_of_weights(directory: Path) -> str:
    """Of all weights that were saved in a directory, whatever else lies there. Raises `OSError`."""
    named = [f"{file.name} {digest_of(file)}" for file in sorted(directory.glob("*.safetensors"))]
    return hashlib.sha256("\n".join(named).encode()).hexdigest()
