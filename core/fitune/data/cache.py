"""Prepared rows on disk: an Arrow file that is mapped into memory, so that data may be larger than memory.

An entry of the cache is a directory named by a key, with `rows.arrow` and `meta.json`. It is built under a lock, in a
directory of another name that is renamed once it is whole: whoever finds an entry finds all of it, and processes that
want the same one wait for a single build. An entry that cannot be read is built anew, so the disk need not know of the
new name as a run's files have it known: an entry that the power took is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from platformdirs import user_cache_path

from fitune.errors import DataError
from fitune.plugin.dataflow import Example, Origin
from fitune.plugin.digest import digest_of

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

ROWS_IN_BATCH = 1024
"""Most rows in an Arrow record batch, which is what a writer holds in memory."""

TOKENS_IN_BATCH = 2**22
"""A record batch ends with the row that reaches so many tokens: long rows would fill the memory, and overflow Arrow's
offsets of 32 bits."""

ROWS, META = "rows.arrow", "meta.json"
"""The files of an entry. What `META` says holds the SHA-256 of each, under its name: its own of all the rest of it."""

Build = Callable[["Writer"], Mapping[str, Any]]
"""Writes the rows of an entry and gives what `meta.json` is to say of them."""


def cache_directory() -> Path:
    """Where entries are kept: `$FT_CACHE`, or `fitune` in the user's cache directory."""
    given = os.environ.get("FT_CACHE")
    return Path(given) if given else user_cache_path("fitune", appauthor=False) / "data"


class Rows(Sequence[Example]):
    """The examples of an entry, read from the mapped file as they are asked for."""

    def __init__(self, directory: Path) -> None:
        """Map an entry that is whole. Raises `DataError` if it cannot be read."""
        import pyarrow as pa

        self.directory = directory
        try:
            self.meta: dict[str, Any] = json.loads((directory / META).read_text(encoding="utf-8"))
            reader = pa.ipc.open_file(pa.memory_map(str(directory / ROWS)))
            batches = [reader.get_batch(n) for n in range(reader.num_record_batches)]
            self._files: list[str] = self.meta["files"]
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise DataError(
                f"the prepared data in {directory} cannot be read: {error}. Delete that directory"
            ) from error
        self._batches = [_Columns(batch) for batch in batches]
        self._ends = list(accumulate(batch.num_rows for batch in batches))
        self._rows = self._ends[-1] if self._ends else 0

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
        part = bisect_right(self._ends, number)
        columns = self._batches[part]
        at = number - (self._ends[part - 1] if part else 0)
        return Example(
            input_ids=columns.input_ids(at),
            labels=columns.labels(at),
            lengths=tuple(columns.lengths(at).tolist()),
            origin=Origin(file=self._files[columns.file[at]], row=int(columns.row[at])),
        )


class _Columns:
    """The columns of a record batch, as arrays that lie in the mapped file."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.input_ids, self.labels, self.lengths = (_lists_of(batch, n) for n in ("input_ids", "labels", "lengths"))
        self.file = batch.column("file").to_numpy(zero_copy_only=True)
        self.row = batch.column("row").to_numpy(zero_copy_only=True)


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
        self._digest = hashlib.sha256()
        self.files: dict[str, int] = {}

    def write(self, examples: Iterable[Example]) -> int:
        """Write all examples; gives their number."""
        import pyarrow as pa

        written = 0
        with pa.OSFile(str(self._file), "wb") as sink, pa.ipc.new_file(sink, self._schema) as out:
            for part in _parts(examples):
                out.write_batch(self._batch(part))
                written += len(part)
        return written

    @property
    def digest(self) -> str:
        """Of the content of all rows that were written."""
        return self._digest.hexdigest()

    def _batch(self, part: Sequence[Example]) -> pa.RecordBatch:
        import pyarrow as pa

        for example in part:
            for values in (example.input_ids, example.labels):
                self._digest.update(f"{len(values)} ".encode() + values.astype("<i4").tobytes())
            self._digest.update(repr(tuple(map(int, example.lengths))).encode())
        files = [self.files.setdefault(example.origin.file, len(self.files)) for example in part]
        columns = [
            _lists([example.input_ids for example in part]),
            _lists([example.labels for example in part]),
            pa.array([example.lengths for example in part], type=self._tokens),
            pa.array(files, type=pa.int32()),
            pa.array([example.origin.row for example in part], type=pa.int64()),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)


def build_or_open(
    key: str | None, build: Build, tell: Callable[[str], None] = lambda notice: None
) -> tuple[Rows, bool]:
    """The entry of this key, built if it is not there, and whether it was; without a key, rows that are not kept.

    `tell` gets a notice where an entry was damaged. Raises `DataError`, and what `build` raises; either way nothing is
    left behind.
    """
    if key is None:
        return _temporary(build), False
    root = cache_directory()
    try:
        if (found := _whole(root / key)) is not None:  # no lock, so that a cache may be one that can only be read
            return found, True
        with _locked(root, key):
            if (found := _whole(root / key)) is not None:  # built by another process while this one waited
                return found, True
            if (root / key).exists():
                tell(f"the prepared data in {root / key} are damaged, and are prepared anew")
                shutil.rmtree(root / key)
            return _built(root, key, build), False
    except OSError as error:
        raise DataError(
            f"prepared data cannot be kept in {root}: {error.strerror or error}. Set FT_CACHE to another directory, "
            "or [data] cache = false"
        ) from error


def _temporary(build: Build) -> Rows:
    """Rows in a directory that lives as long as they do."""
    directory = Path(tempfile.mkdtemp(prefix="fitune-"))
    try:
        _write(directory, build)
        rows = Rows(directory)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    weakref.finalize(rows, shutil.rmtree, directory, ignore_errors=True)
    return rows


def _whole(entry: Path) -> Rows | None:
    """An entry, if it is there, can be read, and is what was written: disks and copies flip bytes."""
    if not entry.is_dir():
        return None
    try:
        rows = Rows(entry)
        said = dict(rows.meta)
        return rows if (said.pop(META), said[ROWS]) == (_digest_of(said), digest_of(entry / ROWS)) else None
    except (DataError, OSError, KeyError):
        return None


def _digest_of(said: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


@contextlib.contextmanager
def _locked(root: Path, key: str) -> Iterator[None]:
    """Be the one process that builds an entry."""
    from filelock import FileLock

    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / f"{key}.lock")
    with lock:
        try:
            yield
        finally:
            # While it is held: filelock sees that what it locked is no longer there, and tries again.
            Path(lock.lock_file).unlink(missing_ok=True)


def _built(root: Path, key: str, build: Build) -> Rows:
    partial = root / f"{key}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # of a build that was killed
    partial.mkdir()
    try:
        _write(partial, build)
        partial.replace(root / key)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return Rows(root / key)


def _write(directory: Path, build: Build) -> None:
    """Write rows and what is said of them, down to the disk: an entry must not lose a part when the power fails."""
    rows, meta = directory / ROWS, directory / META
    writer = Writer(rows)
    said = {**build(writer), "files": list(writer.files), "digest": writer.digest}
    said = json.loads(json.dumps({**said, ROWS: digest_of(rows)}))  # as it is read back
    meta.write_text(json.dumps({**said, META: _digest_of(said)}), encoding="utf-8")
    for file in (rows, meta):
        with file.open("rb") as written:
            os.fsync(written.fileno())


def _parts(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """The examples of one record batch each."""
    part: list[Example] = []
    tokens = 0
    for example in examples:
        part.append(example)
        tokens += len(example.input_ids)
        if len(part) == ROWS_IN_BATCH or tokens >= TOKENS_IN_BATCH:
            yield part
            part, tokens = [], 0
    if part:
        yield part


def _lists(arrays: Sequence[NDArray[np.int32]]) -> pa.ListArray:
    import numpy as np
    import pyarrow as pa

    offsets = np.zeros(len(arrays) + 1, dtype=np.int32)
    np.cumsum([len(a) for a in arrays], out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(arrays), type=pa.int32()))


def _lists_of(batch: pa.RecordBatch, name: str) -> Callable[[int], NDArray[np.int32]]:
    """From a row's place in a batch to a copy of its list."""
    column = batch.column(name)
    offsets: NDArray[np.int32] = column.offsets.to_numpy(zero_copy_only=True)
    values: NDArray[np.int32] = column.values.to_numpy(zero_copy_only=True)
    return lambda at: values[offsets[at] : offsets[at + 1]].copy()
