"""Data source `parquet`: local Parquet files, read a batch of rows at a time.

Values come as Python's: lists, dictionaries (also of Arrow maps), None for null; an object comes without the keys that
are null in it, since Arrow fills them in (`arrow_values`). A compressed file (.parquet.gz, which
is rare: Parquet compresses within) is unpacked into a temporary file first, since its directory stands at its end.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitune import DataError, DataStage, Origin, Row, hookimpl, one_line
from fitune_plugins.data.sources.arrow_values import given_by
from fitune_plugins.data.sources.files import COMPRESSED, FileOptions, Reject, file_source, opened

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

ROWS = 256
"""Rows that are decoded at a time."""

READ = 1 << 20
"""Bytes of a column that are read at a time: without this, and with pre-buffering, the file fills the memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParquetOptions(FileOptions):
    """Options of the source `parquet`."""


def read(path: Path, options: ParquetOptions, reject: Reject) -> Iterator[Row]:
    """The rows of a file, numbered from 1. Raises `DataError`; bad rows go to `reject`."""
    import pyarrow

    file, number = str(path), 0
    try:
        with _parquet_file(path) as parquet:
            _check_columns(parquet.schema_arrow.names, path)
            given = given_by(parquet.schema_arrow)
            for batch in parquet.iter_batches(ROWS):
                for values in _rows(batch):
                    number += 1
                    origin = Origin(file=file, row=number)
                    if isinstance(values, Exception):
                        reject(DataError(f"{origin}: a value that cannot be read: {one_line(str(values))}"))
                    else:
                        yield Row(values=given(values), origin=origin)
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # pyarrow's own have none
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        what = f"not a Parquet file, or damaged: {one_line(str(error))}"
        raise DataError(f"{path}: {what}" + (f" (behind row {number})" if number else "")) from error


@contextlib.contextmanager
def _parquet_file(path: Path) -> Iterator[pyarrow.parquet.ParquetFile]:
    import pyarrow.parquet

    with contextlib.ExitStack() as stack:
        if path.suffix.lower() in COMPRESSED:
            source: Any = stack.enter_context(tempfile.TemporaryFile())
            with opened(path) as packed:
                shutil.copyfileobj(packed, source)
        else:
            source = stack.enter_context(path.open("rb"))
        yield stack.enter_context(pyarrow.parquet.ParquetFile(source, pre_buffer=False, buffer_size=READ))


def _rows(batch: pyarrow.RecordBatch) -> Iterator[dict[str, Any] | Exception]:
    """The rows of a batch; in place of one that holds e.g. a text that is not UTF-8, its error."""
    try:
        yield from batch.to_pylist(maps_as_pydicts="strict")
    except (ValueError, KeyError, OverflowError):
        for at in range(batch.num_rows):
            try:
                yield batch.slice(at, 1).to_pylist(maps_as_pydicts="strict")[0]
            except (ValueError, KeyError, OverflowError) as error:
                yield error


def _check_columns(names: list[str], path: Path) -> None:
    """A row is a dictionary, and would keep but one of two columns of a name. Raises `DataError`."""
    for name in names:
        if names.count(name) > 1:
            raise DataError(f'{path}: two columns have the name "{name}". Rename one')


@hookimpl
def ft_data_stages() -> Iterable[DataStage[ParquetOptions]]:
    """Offer the source."""
    yield file_source("parquet", "Source: local Parquet files", ParquetOptions, read)
