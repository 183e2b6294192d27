"""Data source `jsonl`: a local file of JSON Lines, one object a row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fitune import DataContext, DataError, DataStage, Origin, Problem, Row, hookimpl
from fitune.dataflow import Stage

SHOWN = 60
"""Most characters of a bad line that an error repeats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonlOptions:
    """Options of the source `jsonl`."""

    path: Path
    """The file. UTF-8, one JSON object a line; empty lines are passed over."""


def read(path: Path) -> Iterator[Row]:
    """The rows of a file. Raises `DataError` with file and line."""
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                origin = Origin(file=str(path), row=number)
                values = _values(line, origin)
                if values is not None:
                    yield Row(values=values, origin=origin)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _values(line: bytes, origin: Origin) -> dict[str, Any] | None:
    """A line's object; None for an empty line. Raises `DataError`."""
    try:
        text = line.decode("utf-8-sig" if origin.row == 1 else "utf-8").rstrip()
        values = json.loads(text) if text else None
    except UnicodeDecodeError as error:
        raise DataError(f"{origin}: not UTF-8 (byte {error.start} of the line). Save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        what = f"not JSON: {error.msg} (column {error.colno})"
        raise DataError(f"{origin}: {what}. Write one JSON object a line") from error
    except RecursionError as error:
        raise DataError(f"{origin}: JSON that cannot be read: it is nested too deeply") from error
    except ValueError as error:
        raise DataError(f"{origin}: JSON that cannot be read: it holds a number of too many digits") from error
    if text and not isinstance(values, dict):
        shown = text if len(text) <= SHOWN else f"{text[: SHOWN - 4]} ..."
        raise DataError(f"{origin}: not a JSON object: {shown}. Write one JSON object a line")
    return values


def _check(options: JsonlOptions) -> Iterable[Problem]:
    if not options.path.exists():
        yield Problem(key="path", what=f"no such file: {options.path}", fix="Give the path of a JSON Lines file")
    elif not options.path.is_file():
        yield Problem(key="path", what=f"not a file: {options.path}", fix="Give the path of a JSON Lines file")
    elif options.path.stat().st_size == 0:
        yield Problem(key="path", what=f"the file is empty: {options.path}", fix="Give one with rows")


def _make(options: JsonlOptions, context: DataContext) -> Stage:
    return lambda nothing: read(options.path)


@hookimpl
def ft_data_stages() -> Iterable[DataStage[JsonlOptions]]:
    """Offer the source."""
    yield DataStage(
        name="jsonl",
        summary="Source: a local JSON Lines file",
        options=JsonlOptions,
        takes="nothing",
        gives="rows",
        make=_make,
        check=_check,
    )
