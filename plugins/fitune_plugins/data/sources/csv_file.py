"""Data source `csv`: local files of comma- or tab-separated values, with a header line.

Every value is a text, as it stands in the file: "007" stays "007", and an empty field is an empty text. Fields may be
quoted, and then hold delimiters, line ends and doubled quotes (RFC 4180). Blank lines between rows are passed over.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fitune import DataError, DataStage, Origin, Problem, Row, hookimpl
from fitune_plugins.data.sources import files as reading
from fitune_plugins.data.sources.files import FileOptions, Reject, file_source, suffix
from fitune_plugins.data.sources.strict_json import short


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvOptions(FileOptions):
    """Options of the source `csv`."""

    delimiter: str | None = None
    """One character between fields; without it, a tab in .tsv files and a comma in all others."""
    columns: tuple[str, ...] = ()
    """Names of the columns, where the files have no header line."""


def read(path: Path, options: CsvOptions, reject: Reject) -> Iterator[Row]:
    """The rows of a file, numbered by the line on which they begin. Raises `DataError`; bad rows go to `reject`."""
    delimiter = options.delimiter or ("\t" if suffix(path) == ".tsv" else ",")
    # The limit belongs to the module, not to a reader; its default, 128 KiB, is less than many a document.
    csv.field_size_limit(max(csv.field_size_limit(), reading.LONGEST))
    columns = options.columns
    for line, fields in _records(path, delimiter):
        if isinstance(fields, DataError):
            if not columns:
                raise fields
            reject(fields)
        elif not columns:
            columns = _header(fields, f"{path}:{line}", None if options.delimiter else delimiter)
        elif len(fields) != len(columns):
            what = f"{_fields(len(fields))}, but {_fields(len(columns))} in the header"
            fix = "Put a field that holds a delimiter or a line end in quotes"
            reject(DataError(f"{path}:{line}: {what}. {fix}"))
        else:
            yield Row(values=dict(zip(columns, fields, strict=True)), origin=Origin(file=str(path), row=line))


def _records(path: Path, delimiter: str) -> Iterator[tuple[int, list[str] | DataError]]:
    """The fields of each row, or what is wrong with it, and the line on which it begins. Raises `DataError`."""
    lines = _Lines(path)
    parsed = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        line = parsed.line_num + 1
        try:
            fields = next(parsed)
        except StopIteration:
            return
        except csv.Error as error:
            wrong = _parse_error(error, f"{path}:{line}")
            yield line, lines.taken() or wrong
            continue
        if fields:
            yield line, lines.taken() or fields


class _Lines:
    """The lines of a file as text; a line that is none is handed on all the same, to keep quotes in step."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.wrong: DataError | None = None
        self.lines = reading.lines(path, reading.stop)

    def taken(self) -> DataError | None:
        """What is wrong with a line that was read since this was last asked."""
        wrong, self.wrong = self.wrong, None
        return wrong

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        number, line = next(self.lines)
        if b"\0" in line:
            what = "the line holds NUL bytes: the file was damaged, or is no text"
            self.wrong = DataError(f"{self.path}:{number}: {what}")
            line = line.replace(b"\0", b"")
        try:
            return reading.text(line, f"{self.path}:{number}")
        except DataError as error:
            self.wrong = error
            return line.decode(errors="replace")


def _header(fields: list[str], where: str, delimiter: str | None) -> tuple[str, ...]:
    """The names of the columns, checked; `delimiter` is the one that nobody chose. Raises `DataError`."""
    if len(fields) == 1 and delimiter:
        for other in ",;\t|":
            if other in fields[0]:
                fix = f"Name what stands between fields: delimiter = {json.dumps(other)}"
                raise DataError(f"{where}: the header is one column, {json.dumps(short(fields[0]))}. {fix}")
    named: set[str] = set()
    for number, name in enumerate(fields, 1):
        if not name.strip():
            raise DataError(f"{where}: column {number} of the header has no name. Give it one, or set: columns")
        if name in named:
            raise DataError(f'{where}: two columns of the header have the name "{name}". Rename one')
        named.add(name)
    return tuple(fields)


def _parse_error(error: csv.Error, where: str) -> DataError:
    """What is wrong with a row that cannot be told into fields. Raises it if no later row can be told either."""
    if "field larger" in str(error):
        what = f"a field is longer than {csv.field_size_limit() >> 20} MiB, or a quote is never closed"
        raise DataError(f"{where}: {what}. Split long texts, or double each quote in a text")
    if "unexpected end" in str(error):
        # All that follows was read as part of this field: skipping it would be silent.
        raise DataError(f"{where}: a quote that is opened in this row is never closed. Double each quote in a text")
    if "new-line" in str(error):
        return DataError(
            f"{where}: a carriage return alone. Let lines end in \\n or \\r\\n, or put the field in quotes"
        )
    return DataError(f"{where}: not CSV: {error}. Double each quote in a text")


def _fields(number: int) -> str:
    return f"{number} field{'s' if number != 1 else ''}"


def _check(options: CsvOptions) -> Iterator[Problem]:
    if options.delimiter is not None and (len(options.delimiter) != 1 or options.delimiter in '"\r\n'):
        what = f"the delimiter is {json.dumps(options.delimiter)}, not one character"
        yield Problem(key="delimiter", what=what, fix='Write e.g. ";", or "\\t" for a tab')
    if not all(name.strip() for name in options.columns) or len(set(options.columns)) < len(options.columns):
        yield Problem(key="columns", what="columns need names that differ", fix="Name every column once")


@hookimpl
def ft_data_stages() -> Iterable[DataStage[CsvOptions]]:
    """Offer the source."""
    yield file_source("csv", "Source: local CSV and TSV files", CsvOptions, read, _check)
