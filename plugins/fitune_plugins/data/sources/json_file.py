"""Data source `json`: local files that are one JSON array of objects, or an object that holds such an array.

Python's JSON reader needs the whole text, so a file of this kind is read whole (memory: twice its size if it is ASCII),
and may have 512 MiB at most; its rows are made one by one. More belongs into JSON Lines (`jsonl`), read line by line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fitune import DataError, DataStage, Origin, Row, hookimpl
from fitune_plugins.data.sources.files import FileOptions, Reject, file_source, opened
from fitune_plugins.data.sources.strict_json import STRICT, NotStrictError, cause, check_characters, short

LARGEST = 512 << 20
"""Most bytes of a file."""

SPACE = re.compile(r"[ \t\n\r]*")

LENIENT = json.JSONDecoder()
"""Finds where a value ends that `STRICT` refuses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonOptions(FileOptions):
    """Options of the source `json`."""

    field: str | None = None
    """The key of the array, e.g. "data", where the file is an object that holds one; else the file is an array."""


def read(path: Path, options: JsonOptions, reject: Reject) -> Iterator[Row]:
    """The rows of a file, numbered by their place in the array. Raises `DataError`; bad rows go to `reject`."""
    written = _whole(path)
    number = 0
    try:
        for number, (values, error, as_written) in enumerate(_elements(written, _start(written, options.field)), 1):
            origin = Origin(file=str(path), row=number)
            if error:
                reject(DataError(f"{origin}: {cause(error)}"))
            elif not isinstance(values, dict):
                reject(DataError(f"{origin}: not a JSON object: {short(as_written)}. Write an array of objects"))
            else:
                yield Row(values=values, origin=origin)
    except (ValueError, RecursionError) as error:
        at = f"line {error.lineno}, column {error.colno}, " if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(f"{path}: {cause(error)} ({at}behind row {number})") from error
    except _WrongShape as error:
        raise DataError(f"{path}: {error}") from error


class _WrongShape(Exception):
    """JSON, but not an array of rows; says what to do."""


def _whole(path: Path) -> str:
    """The file's text. Raises `DataError`."""
    with opened(path) as stream:
        content = stream.read(LARGEST + 1)
    if len(content) > LARGEST:
        fix = "Write it as JSON Lines, one object a line, which is not read whole"
        raise DataError(f"{path}: larger than {LARGEST >> 20} MiB, the most that a JSON file may have. {fix}")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 (byte {error.start}). Save the file as UTF-8") from error


def _elements(written: str, first: int) -> Iterator[tuple[Any, Exception | None, str]]:
    """Each value of the array that begins at `first`, or why it is refused; and how it is written."""
    at = _skip(written, first)
    while written[at : at + 1] != "]":
        value, error = None, None
        try:
            value, end = STRICT.raw_decode(written, at)
            check_characters(written[at:end], value)
        except NotStrictError as refused:
            error = refused
            end = LENIENT.raw_decode(written, at)[1]
        yield value, error, written[at:end]
        at = _skip(written, end)
        if written[at : at + 1] == ",":
            at = _skip(written, at + 1)
            if written[at : at + 1] == "]":
                raise json.JSONDecodeError("Expecting value", written, at)
        elif written[at : at + 1] != "]":
            raise json.JSONDecodeError("Expecting ',' delimiter", written, at)
    if _skip(written, 0) == first - 1 and (rest := _skip(written, at + 1)) != len(written):
        raise json.JSONDecodeError("Extra data", written, rest)  # behind an array that is the whole file


def _start(written: str, field: str | None) -> int:
    """Where the first element of the array stands. Raises `_WrongShape`."""
    at = _skip(written, 0)
    if field is None and written[at : at + 1] == "[":
        return at + 1
    whole = _parsed(written, at)
    if field is None:
        names = [key for key, value in whole.items() if isinstance(value, list)]
        fix = f'Name the array\'s key: field = "{names[0]}"' if names else "Write an array of objects"
        raise _WrongShape(f"the file is a JSON object, not an array. {fix}")
    if not isinstance(whole.get(field), list):
        names = [key for key, value in whole.items() if isinstance(value, list)]
        has = f"Arrays in it: {', '.join(names)}" if names else "It holds no array"
        raise _WrongShape(f'no array under the key "{field}". {has}')
    return _behind_key(written, at + 1, field)


def _parsed(written: str, at: int) -> dict[str, Any]:
    """The file as the object that it should be. Raises `_WrongShape`."""
    whole, end = LENIENT.raw_decode(written, at)
    rest = _skip(written, end)
    if isinstance(whole, dict) and written[rest : rest + 1] == "{":
        raise _WrongShape('the file is JSON Lines, not one JSON value. Read it with use = "jsonl"')
    if rest != len(written):
        raise json.JSONDecodeError("Extra data", written, rest)
    if isinstance(whole, list):
        raise _WrongShape("the file is an array, not an object that holds one. Leave out: field")
    if not isinstance(whole, dict):
        raise _WrongShape(f"not a JSON array: {short(written.strip())}. Write an array of objects")
    return whole


def _behind_key(written: str, at: int, field: str) -> int:
    """In an object whose first key stands at `at`: behind the "[" of this key's value."""
    found, seen = at, set[str]()
    while True:
        key, at = LENIENT.raw_decode(written, _skip(written, at))
        if key in seen:
            raise NotStrictError(f"the key {json.dumps(key)} stands twice in one object")
        seen.add(key)
        start = _skip(written, _skip(written, at) + 1)  # over the colon
        found = start + 1 if key == field else found
        at = _skip(written, LENIENT.raw_decode(written, start)[1])
        if written[at] == "}":
            return found
        at += 1  # over the comma


def _skip(written: str, at: int) -> int:
    """The next place that is no white space."""
    space = SPACE.match(written, at)
    return space.end() if space else at


@hookimpl
def ft_data_stages() -> Iterable[DataStage[JsonOptions]]:
    """Offer the source."""
    yield file_source("json", "Source: local JSON files, each an array of objects", JsonOptions, read)
