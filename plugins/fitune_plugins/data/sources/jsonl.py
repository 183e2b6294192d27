"""Data source `jsonl`: local files of JSON Lines, one object a row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fitune import DataError, DataStage, Origin, Row, hookimpl
from fitune_plugins.data.sources.files import FileOptions, Reject, file_source, lines, stop, text
from fitune_plugins.data.sources.strict_json import STRICT, cause, check_characters, short

FIX = "Write one JSON object a line"


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonlOptions(FileOptions):
    """Options of the source `jsonl`: UTF-8, one JSON object a line; blank lines are passed over."""


def read(path: Path, reject: Reject = stop) -> Iterator[Row]:
    """The rows of a file. Raises `DataError`; what is wrong with a row goes to `reject`, with file and line."""
    file = str(path)
    for number, line in lines(path, reject):
        if line.isspace():
            continue
        origin = Origin(file=file, row=number)
        try:
            values = _values(line, origin)
        except DataError as error:
            reject(error)
        else:
            yield Row(values=values, origin=origin)


def _values(line: bytes, origin: Origin) -> dict[str, Any]:
    """A line's object. Raises `DataError`."""
    written = text(line, origin)
    try:
        values = STRICT.decode(written)
        check_characters(written, values)
    except (ValueError, RecursionError) as error:
        if b"\0" in line:
            what = f"{origin}: the line holds NUL bytes: the file was damaged, or not written to its end"
            raise DataError(what) from error
        place = ""
        if isinstance(error, json.JSONDecodeError):  # which counts the line's end as a column, or as another line
            place = f" (column {min(error.pos, len(written.rstrip())) + 1}). {FIX}"
        raise DataError(f"{origin}: {cause(error)}{place}") from error
    if not isinstance(values, dict):
        raise DataError(f"{origin}: not a JSON object: {short(written.strip())}. {FIX}")
    return values


@hookimpl
def ft_data_stages() -> Iterable[DataStage[JsonlOptions]]:
    """Offer the source."""
    summary = "Source: local JSON Lines files"
    yield file_source("jsonl", summary, JsonlOptions, lambda path, options, reject: read(path, reject))
