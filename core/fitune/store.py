"""Prepared rows on disk: an Arrow file that is mapped into memory, so that data may be larger than memory.

An entry of the cache is a directory named by a key, with `rows.arrow` and `meta.json`. It is built under a lock, in a
directory of another name that is renamed once it is whole: whoever finds an entry finds all of it, and processes that
want the same one wait for a single build.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from fitune.dataflow import Example, Origin
from fitune.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

ROWS_IN_BATCH = 1024
"""Rows in an Arrow record batch: position n is row n % 1024 of batch n // 1024."""

Build = Callable[["Writer"], Mapping[str, Any]]
"""Writes the rows of an entry and gives what `meta.json` is to say of them."""


def cache_directory() -> Path:
    """Where entries are kept: `$FT_CACHE`, or `fitune` in the user's cache directory."""
    given = os.environ.get("FT_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(base) / "fitune" / "data"


class Rows(Sequence[Example]):
    """The examples of an entry, read from the mapped file as they are asked for."""

    def __init__(self, directory: Path) -> None:
        """Map an entry that is whole. Raises `DataError` if it cannot be read."""
        import pyarrow as pa

        self.directory = directory
        try:
            self.meta: dict[str, Any] = json.loads((directory / "meta.json").read_text(encoding="utf-8"))
            reader = pa.ipc.open_file(pa.memory_map(str(directory / "rows.arrow")))
            self._batches = [reader.get_batch(n) for n in range(reader.num_record_batches)]
        except (OSError, ValueError, pa.ArrowInvalid) as error:
            raise DataError(
                f"the prepared data in {directory} cannot be read: {error}. Delete that directory"
            ) from error
        self._rows: int = sum(batch.num_rows for batch in self._batches)

    def __len__(self) -> int:
        """Number of rows."""
        return self._rows

    @overload
    def __getitem__(self, row: int) -> Example: ...
    @overload
    def __getitem__(self, row: slice) -> list[Example]: ...
    def __getitem__(self, row: int | slice) -> Example | list[Example]:
        """A row; its arrays are copies, so that nobody writes into the cache."""
        if isinstance(row, slice):
            return [self[n] for n in range(*row.indices(self._rows))]
        number = int(row) + (self._rows if row < 0 else 0)
        if not 0 <= number < self._rows:
            raise IndexError(row)
        batch, at = self._batches[number // ROWS_IN_BATCH], number % ROWS_IN_BATCH
        file = self.meta["files"][batch.column("file")[at].as_py()]
        return Example(
            input_ids=_slice(batch, "input_ids", at),
            labels=_slice(batch, "labels", at),
            lengths=tuple(_slice(batch, "lengths", at).tolist()),
            origin=Origin(file=file, row=batch.column("row")[at].as_py()),
        )


class Writer:
    """Writes examples to an Arrow file, holding no more than a record batch of them."""

    def __init__(self, file: Path) -> None:
        import pyarrow as pa

        self._tokens = pa.list_(pa.int32())
        self._schema = pa.schema(
            {
                "input_ids": self._tokens,
                "labels": self._tokens,
                "lengths": self._tokens,
                "file": pa.int32(),
                "row": pa.int64(),
            }
        )
        self._file = file
        self.files: dict[str, int] = {}

    def write(self, examples: Iterable[Example]) -> int:
        """Write all examples; gives their number."""
        import pyarrow as pa

        stream = iter(examples)
        written = 0
        with pa.OSFile(str(self._file), "wb") as sink, pa.ipc.new_file(sink, self._schema) as out:
            while part := list(islice(stream, ROWS_IN_BATCH)):
                out.write_batch(self._batch(part))
                written += len(part)
        return written

    def _batch(self, part: Sequence[Example]) -> pa.RecordBatch:
        import pyarrow as pa

        files = [self.files.setdefault(example.origin.file, len(self.files)) for example in part]
        columns = [
            _lists([example.input_ids for example in part]),
            _lists([example.labels for example in part]),
            pa.array([example.lengths for example in part], type=self._tokens),
            pa.array(files, type=pa.int32()),
            pa.array([example.origin.row for example in part], type=pa.int64()),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)


@dataclass(slots=True)
class Stored:
    """Rows, and the temporary directory that lives as long as they do, where there is no cache entry."""

    rows: Rows
    hit: bool
    """Whether the entry was there before."""
    _temporary: tempfile.TemporaryDirectory[str] | None = None


def build_or_open(key: str | None, build: Build) -> Stored:
    """The entry of this key, built if it is not there; without a key, an entry for this process alone.

    Raises `DataError`, and what `build` raises; either way nothing is left behind.
    """
    if key is None:
        temporary = tempfile.TemporaryDirectory(prefix="fitune-")
        _write(Path(temporary.name), build)
        return Stored(rows=Rows(Path(temporary.name)), hit=False, _temporary=temporary)
    from filelock import FileLock

    root = cache_directory()
    entry = root / key
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{key}.lock"):
            if entry.is_dir():
                return Stored(rows=Rows(entry), hit=True)
            partial = root / f"{key}.partial"
            shutil.rmtree(partial, ignore_errors=True)  # of a build that was killed
            partial.mkdir()
            try:
                _write(partial, build)
                partial.replace(entry)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
            return Stored(rows=Rows(entry), hit=False)
    except OSError as error:
        raise DataError(
            f"prepared data cannot be kept in {root}: {error.strerror or error}. Set FT_CACHE to another directory, "
            "or [data] cache = false"
        ) from error


def _write(directory: Path, build: Build) -> None:
    writer = Writer(directory / "rows.arrow")
    meta = {**build(writer), "files": list(writer.files)}
    with (directory / "meta.json").open("w", encoding="utf-8") as file:
        json.dump(meta, file)
        file.flush()
        os.fsync(file.fileno())


def _lists(arrays: Sequence[NDArray[np.int32]]) -> pa.ListArray:
    import numpy as np
    import pyarrow as pa

    offsets = np.zeros(len(arrays) + 1, dtype=np.int32)
    np.cumsum([len(a) for a in arrays], out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(arrays), type=pa.int32()))


def _slice(batch: pa.RecordBatch, name: str, at: int) -> NDArray[np.int32]:
    column = batch.column(name)
    first, last = column.offsets[at].as_py(), column.offsets[at + 1].as_py()
    values: NDArray[np.int32] = column.values.slice(first, last - first).to_numpy(zero_copy_only=True)
    return values.copy()
