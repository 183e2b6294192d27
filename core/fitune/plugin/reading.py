"""Files that anybody may have left there: read if they are files, and as JSON that can be worked with.

A pipe or a device in a file's place would be waited for, or give no end of bytes; nested values without end, whole
numbers of thousands of digits and numbers that are not finite break what comes after them.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

LARGEST = 1 << 28
"""Bytes of a file that is read into memory as a whole, at most."""

DEEPEST = 64
"""Levels of lists and objects in JSON, at most: what the program writes has ten."""

DIGITS = 400
"""Digits of a whole number in JSON, at most: more is no number that was measured or counted."""


def open_file(path: Path) -> BinaryIO:
    """Open a file for reading. Raises `OSError`; also for what is no file, which is not waited for."""
    if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():  # opening a device may do something
        raise OSError(errno.EINVAL, "it is no file", str(path))
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if stat.S_ISREG(os.fstat(number).st_mode):
            return os.fdopen(number, "rb")
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    except BaseException:
        os.close(number)
        raise


def read_file(path: Path, most: int = LARGEST) -> bytes:
    """All of a file. Raises `OSError`; also for what is no file, and for one of more than so many bytes."""
    with open_file(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", str(path))
        return stream.read(size)  # what is added meanwhile is for the next time


def json_of(text: str | bytes) -> Any:
    """What a text of JSON says. Raises `ValueError` for what is none, or none to work with."""
    try:
        found = json.loads(text, parse_constant=_not_finite, parse_int=_whole)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    opening = text.count(b"[") + text.count(b"{") if isinstance(text, bytes) else text.count("[") + text.count("{")
    if opening > DEEPEST and _is_deep(found):
        raise ValueError("it is nested too deep")
    return found


def read_json(path: Path, most: int = LARGEST) -> Any:
    """What a file of JSON says. Raises `OSError` and `ValueError`."""
    return json_of(read_file(path, most))


def _whole(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"it holds a whole number of {len(digits):,} digits")
    return int(digits)


def _not_finite(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}, which is no number of JSON")


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for one in level if isinstance(one, dict | list)
                 for inner in (one.values() if isinstance(one, dict) else one)]  # fmt: skip
        if not level:
            return False
    return True
