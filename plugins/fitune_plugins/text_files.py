"""Small files that come with a model: read if they are files, up to a size, and as JSON that is not too deep."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

LARGEST = 1 << 26
"""Bytes of such a file, at most: an index of thousands of shards has one million."""


def text_of(file: Path, encoding: str = "utf-8") -> str:
    """All of a file. Raises `OSError`, also for a pipe or a device, which would be waited for; and `UnicodeError`."""
    if not file.is_file() and not file.is_dir() and file.exists():
        raise OSError(errno.EINVAL, "it is no file", str(file))
    with file.open(encoding=encoding) as stream:
        text = stream.read(LARGEST + 1)
    if len(text) > LARGEST:
        raise OSError(errno.EFBIG, f"it has more than {LARGEST:,} characters", str(file))
    return text


def json_of(file: Path) -> Any:
    """What a file of JSON says. Raises `OSError` and `ValueError`."""
    try:
        return json.loads(text_of(file))
    except RecursionError:
        raise ValueError("it is nested too deep") from None
