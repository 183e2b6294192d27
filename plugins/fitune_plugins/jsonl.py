"""Data source `jsonl`: a local file of JSON Lines, one object a row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fitune import DataContext, DataError, DataStage, Origin, Problem, Row, hookimpl
from fitune.records import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonlOptions:
    """Options of the source `jsonl`."""

    path: Path
    """The file. UTF-8, one JSON object a line; empty lines are passed over."""


def read(path: Path) -> Iterator[Row]:
    """The rows of a file. Raises `DataError` with file and line."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            origin = Origin(file=str(path), row=number)
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                values = json.loads(text) if text.strip() else None
            except UnicodeDecodeError as error:
                raise DataError(f"{origin}: not UTF-8 (byte {error.start} of the line). Convert the file") from error
            except json.JSONDecodeError as error:
                raise DataError(f"{origin}: not JSON: {error.msg} (column {error.colno})") from error
            if values is None and not text.strip():
                continue
            if not isinstance(values, dict):
                raise DataError(f"{origin}: a row is a JSON object, this is {json.dumps(values)[:60]}")
            yield Row(values=values, origin=origin)


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
