"""Data source `txt`: local files of plain text; a row is `{"text": ...}`.

Line ends become "\\n", whatever they were. What is blank gives no row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fitune import DataError, DataStage, Origin, Row, hookimpl
from fitune_plugins.data.sources import files as reading
from fitune_plugins.data.sources.files import FileOptions, Reject, file_source, lines


@dataclass(frozen=True, slots=True, kw_only=True)
class TxtOptions(FileOptions):
    """Options of the source `txt`."""

    row: Literal["file", "paragraph", "line"] = "file"
    """What a row is: a whole file (of at most 16 MiB), a paragraph (what stands between blank lines) or a line."""


def read(path: Path, options: TxtOptions, reject: Reject) -> Iterator[Row]:
    """The rows of a file, numbered by the line on which they begin. Raises `DataError`; bad rows go to `reject`."""
    for number, part in _parts(path, options.row, reject):
        origin = Origin(file=str(path), row=number)
        try:
            text = _text(part, path, number)
        except DataError as error:
            reject(error)
            continue
        if not text.isspace():
            yield Row(values={"text": text if options.row == "file" else text.rstrip("\n")}, origin=origin)


def _parts(path: Path, row: str, reject: Reject) -> Iterator[tuple[int, list[bytes]]]:
    """The lines of each row, with the number of the first."""
    first, size = 1, 0
    part: list[bytes] = []
    for number, line in lines(path, reject):
        if row == "line":
            yield number, [line]
            continue
        if row == "paragraph" and line.isspace():
            if part:
                yield first, part
            first, size, part = number + 1, 0, []
            continue
        first = first if part else number
        size += len(line)
        if size > reading.LONGEST:
            fix = 'Set: row = "paragraph" (or "line")' if row == "file" else 'Set: row = "line"'
            raise DataError(f"{path}:{first}: the {row} is longer than {reading.LONGEST >> 20} MiB. {fix}")
        part.append(line)
    if part:
        yield first, part


def _text(part: list[bytes], path: Path, number: int) -> str:
    """The text of some lines. Raises `DataError`."""
    for at, line in enumerate(part, number):
        if b"\0" in line:
            raise DataError(f"{path}:{at}: the line holds NUL bytes: the file was damaged, or is no text")
    text = "".join(reading.text(line, f"{path}:{at}") for at, line in enumerate(part, number))
    return text.replace("\r\n", "\n").replace("\r", "\n")


@hookimpl
def ft_data_stages() -> Iterable[DataStage[TxtOptions]]:
    """Offer the source."""
    yield file_source("txt", "Source: local files of plain text", TxtOptions, read)
