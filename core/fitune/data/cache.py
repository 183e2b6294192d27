"""Prepared rows on disk: an Arrow file that is mapped into memory, so that data may be larger than memory.

An entry of the cache is a directory named by a key, with `rows.arrow` and `meta.json`. It is built under a lock, in a
directory of another name that is renamed once it is whole: whoever finds an entry finds all of it, and processes that
want the same one wait for a single build. An entry that cannot be read is built anew, so the disk need not know of the
new name as a run's files have it known: an entry that the power took is made again.

Whoever opens an entry reads all of it once: its rows must have the digest that `meta.json` gives them, and `meta.json`
the seal of this user for this key (`seal.py`). One that was damaged, mixed up with another or made by somebody else is
built anew.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from platformdirs import user_cache_path

from fitune.data.cache_writer import EXTRAS, Writer
from fitune.data.origins import found as file_of
from fitune.data.origins import kept
from fitune.data.seal import is_sealed, key_file, seal_of, users_key
from fitune.errors import DataError, cause
from fitune.plugin.dataflow import Example, Origin
from fitune.plugin.digest import BLOCK, digest_of
from fitune.plugin.reading import open_file, read_json

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

ROWS, META = "rows.arrow", "meta.json"
"""The files of an entry. `META` holds the SHA-256 of the rows under their file's name, and the seal of all the rest of
it under its own."""

PARTIAL = ".partial"
"""End of the name of what is being built."""

Build = Callable[["Writer"], Mapping[str, Any]]
"""Writes the rows of an entry and gives what `meta.json` is to say of them."""


def cache_directory() -> Path:
    """Where entries are kept: `$FT_CACHE`, or `fitune` in the user's cache directory."""
    given = os.environ.get("FT_CACHE")
    return Path(given) if given else user_cache_path("fitune", appauthor=False) / "data"


class Rows(Sequence[Example]):
    """The examples of an entry, read from the mapped file as they are asked for."""

    def __init__(self, directory: Path, mapped: pa.MemoryMappedFile | None = None, places: Sequence[Path] = ()) -> None:
        """Map an entry that is whole, if it is not `mapped` yet; `places` are the paths that its sources are found by.

        Raises `DataError` if it cannot be read.
        """
        import pyarrow as pa

        self.directory = directory
        try:
            self.meta: dict[str, Any] = read_json(directory / META)
            reader = pa.ipc.open_file(mapped or _mapped(directory / ROWS))
            batches = [reader.get_batch(n) for n in range(reader.num_record_batches)]
            self._files = [file_of(name, places) for name in self.meta["files"]]
        except (OSError, ValueError, LookupError, TypeError, pa.ArrowException) as error:
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
            extras={name: tuple(values(at).tolist()) for name, values in columns.extras.items()},
            origin=Origin(file=self._files[columns.file[at]], row=int(columns.row[at])),
        )


class _Columns:
    """The columns of a record batch, as arrays that lie in the mapped file."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.input_ids, self.labels, self.lengths = (_lists_of(batch, n) for n in ("input_ids", "labels", "lengths"))
        self.file = batch.column("file").to_numpy(zero_copy_only=True)
        self.row = batch.column("row").to_numpy(zero_copy_only=True)
        extras = [name for name in batch.schema.names if name.startswith(EXTRAS)]
        self.extras = {name.removeprefix(EXTRAS): _lists_of(batch, name) for name in extras}


def build_or_open(
    key: str | None,
    build: Build,
    tell: Callable[[str], None] = lambda notice: None,
    places: Sequence[Path] = (),
) -> tuple[Rows, bool]:
    """The entry of this key, built if it is not there, and whether it was; without a key, rows that are not kept.

    `tell` gets a notice where an entry was damaged; `places` are the paths of the sources and stages, in their order.
    Raises `DataError`, and what `build` raises; either way nothing is left behind.
    """
    if key is None:
        return _temporary(build, places), False
    root = cache_directory()
    try:
        sealing = users_key()
    except OSError as error:  # without a seal they would not be known again
        fix = "Set XDG_STATE_HOME to a directory of your own"
        tell(f"prepared data are not kept: {key_file()} cannot be made: {cause(error)}. {fix}")
        return _temporary(build, places), False
    try:
        if (
            found := _whole(root / key, sealing, places)
        ) is not None:  # no lock, so that a cache may be one that is only read
            return found, True
        with locked(root, key):
            if (
                found := _whole(root / key, sealing, places)
            ) is not None:  # built by another process while this one waited
                return found, True
            if os.path.lexists(root / key):
                tell(f"the prepared data in {root / key} are damaged, and are prepared anew")
                _remove(root / key)
            return _built(root, key, build, sealing, places), False
    except OSError as error:
        raise DataError(
            f"prepared data cannot be kept in {root}: {error.strerror or error}. Set FT_CACHE to another directory, "
            "or [data] cache = false"
        ) from error


def _temporary(build: Build, places: Sequence[Path]) -> Rows:
    """Rows in a directory that lives as long as they do."""
    directory = Path(tempfile.mkdtemp(prefix="fitune-"))
    try:
        _write(directory, build, directory.name, b"", places)
        rows = Rows(directory, places=places)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    weakref.finalize(rows, shutil.rmtree, directory, ignore_errors=True)
    return rows


def seal_of_whole(name: str) -> str | None:
    """The seal of an entry that is in the cache, and whole, as `_whole` has it; its rows are not read as rows."""
    entry = cache_directory() / name
    try:
        said, seal = _said_by(entry, users_key())
        return seal if digest_of(entry / ROWS) == said[ROWS] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _whole(entry: Path, sealing: bytes, places: Sequence[Path]) -> Rows | None:
    """An entry, if it is there, can be read, and is what this user wrote under this name: disks and copies flip bytes,
    and others may write into a cache that is shared. Nothing of it is taken for rows before that is known.
    """
    try:
        said, _ = _said_by(entry, sealing)
        mapped = _mapped(entry / ROWS)
        if said[ROWS] != _digest_of(mapped):
            return None
        rows = Rows(entry, mapped, places)
        return rows if {**said, META: rows.meta[META]} == rows.meta else None
    except (DataError, OSError, ValueError, KeyError, TypeError):
        return None


def _said_by(entry: Path, sealing: bytes) -> tuple[dict[str, Any], str]:
    """What an entry says of itself, and its seal. Raises `OSError`, `KeyError`, `TypeError` and `ValueError`, the last
    also for one that this user did not write under this name.
    """
    if not entry.is_dir() or entry.is_symlink():
        raise ValueError(f"{entry} is no directory")
    said = dict(read_json(entry / META))
    seal = said.pop(META)
    if not is_sealed(sealing, entry.name, said, seal):
        raise ValueError(f"{entry} is not this user's")
    return said, str(seal)


def _mapped(file: Path) -> pa.MemoryMappedFile:
    """A file, mapped into memory. Raises `OSError`, and pyarrow's own errors."""
    import pyarrow as pa

    open_file(file).close()  # what is none would be waited for
    return pa.memory_map(str(file))


def _digest_of(mapped: pa.MemoryMappedFile) -> str:
    """The SHA-256 of what is mapped: of these very bytes, whatever becomes of the file's name."""
    digest = hashlib.sha256()
    size = mapped.size()
    for start in range(0, size, BLOCK):
        digest.update(mapped.read_buffer(min(BLOCK, size - start)))
    mapped.seek(0)
    return digest.hexdigest()


def _remove(place: Path) -> None:
    """Delete what stands in an entry's place. Raises `OSError`."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink()


@contextlib.contextmanager
def locked(root: Path, key: str) -> Iterator[None]:
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


def _built(root: Path, key: str, build: Build, sealing: bytes, places: Sequence[Path]) -> Rows:
    for left in root.glob(f"{key}.*{PARTIAL}"):  # of a build that was killed
        _remove(left)
    partial = Path(tempfile.mkdtemp(prefix=f"{key}.", suffix=PARTIAL, dir=root))
    try:
        _write(partial, build, key, sealing, places)
        partial.replace(root / key)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return Rows(root / key, places=places)


def _write(directory: Path, build: Build, name: str, sealing: bytes, places: Sequence[Path]) -> None:
    """Write rows and what is said of them, sealed, down to the disk: no part must be lost when the power fails."""
    rows, meta = directory / ROWS, directory / META
    writer = Writer(rows)
    said = {**build(writer), "files": [kept(file, places) for file in writer.files], "digest": writer.digest}
    said = json.loads(json.dumps({**said, ROWS: digest_of(rows)}))  # as it is read back
    meta.write_text(json.dumps({**said, META: seal_of(sealing, name, said)}), encoding="utf-8")
    for file in (rows, meta):
        with file.open("rb") as written:
            os.fsync(written.fileno())


def _lists_of(batch: pa.RecordBatch, name: str) -> Callable[[int], NDArray[Any]]:
    """From a row's place in a batch to a copy of its list."""
    column = batch.column(name)
    offsets: NDArray[np.int32] = column.offsets.to_numpy(zero_copy_only=True)
    values: NDArray[Any] = column.values.to_numpy(zero_copy_only=True)
    return lambda at: values[offsets[at] : offsets[at + 1]].copy()
