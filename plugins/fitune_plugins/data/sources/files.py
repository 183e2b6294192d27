"""What the sources of local files have in common: the files that a path names, their bytes, and their digest.

A source of files is a function that reads one file; `file_source` makes a data stage of it. It may rely on this:

* the path is a file, a directory (all files of the source's suffixes below it) or a glob pattern; files come in the
  order of their names, hidden ones (`.git`, `.cache`) and links to directories are passed over;
* a compressed file reads as if it were not (`opened`), and is never unpacked as a whole;
* what is wrong with a file is raised as `DataError`; what is wrong with a row goes to `reject`, which raises it or,
  where the recipe skips bad rows, counts it. Then the next row is read.
"""

from __future__ import annotations

import bz2
import contextlib
import glob
import gzip
import hashlib
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import IO, Annotated, TypeAlias, TypeVar, cast

from annotated_types import Ge

from fitune import DataContext, DataError, DataStage, Problem, Row, Stage, sentences

BLOCK = 1 << 20
"""Bytes that are read at a time."""

LONGEST = 16 << 20
"""Most bytes of a line, and of a text that is one row: a file without line ends must not fill the memory, nor a text of
which nothing but a part could be trained on the time.
"""

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")

FORMATS = {
    "jsonl": ("JSON Lines", (".jsonl", ".ndjson")),
    "json": ("JSON", (".json",)),
    "csv": ("CSV", (".csv", ".tsv")),
    "parquet": ("Parquet", (".parquet",)),
    "txt": ("text", (".txt",)),
}
"""Each source with what its files are called and how their names end."""

ALSO_READ = {("jsonl", ".json")}
"""Files that a source reads if they are named, though their names are another's: much JSON Lines is named .json."""

MAGIC = (
    (b"\x1f\x8b", "a gzip file", "Let its name end in .gz"),
    (b"\xfd7zXZ\x00", "an xz file", "Let its name end in .xz"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file", "Let its name end in .zst"),
    (b"PK\x03\x04", "a zip archive", "Unpack it"),
)
"""First bytes that no text has, what they say that the file is, and what to do."""

Reject: TypeAlias = Callable[[DataError], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileOptions:
    """Options of every source of local files."""

    path: Path
    """A file, a directory (all its files of this format, also in directories below it, in the order of their names)
    or a glob pattern such as "data/**/part-*"; from the recipe's directory. Compressed files (.gz, .bz2, .xz, .zst)
    are unpacked as they are read."""
    limit: Annotated[int, Ge(1)] | None = None
    """Only the first so many rows."""


O = TypeVar("O", bound=FileOptions)  # noqa: E741 - options, as in the records of the core

ReadFile: TypeAlias = Callable[[Path, O, Reject], Iterator[Row]]


def stop(error: DataError) -> None:
    """A `Reject` that raises the error."""
    raise error


def file_source(
    name: str, summary: str, options: type[O], read: ReadFile[O], more: Callable[[O], Iterable[Problem]] | None = None
) -> DataStage[O]:
    """The data stage of a source of files; `more` checks the options that only this source has."""

    def make(given: O, context: DataContext) -> Stage:
        return lambda nothing: rows(name, given, read, context.reject)

    def check(given: O) -> Iterator[Problem]:
        yield from _look(name, given.path)[1]
        yield from more(given) if more else ()

    return DataStage(
        name=name,
        summary=summary,
        options=options,
        takes="nothing",
        gives="rows",
        make=make,
        check=check,
        suffixes=tuple(suffix + packed for suffix in FORMATS[name][1] for packed in ("", *COMPRESSED)),
        fingerprint=lambda given: fingerprint(name, given.path),
    )


def rows(name: str, options: O, read: ReadFile[O], reject: Reject) -> Iterator[Row]:
    """The rows of all files of a source. Raises `DataError`."""
    each = (read(file, options, reject) for file in files(name, options.path))
    return islice(chain.from_iterable(each), options.limit)


def fingerprint(name: str, path: Path) -> str:
    """A digest of the names and the bytes of all files of a source; where they lie and their dates do not count."""
    whole = hashlib.sha256()
    for file in files(name, path):
        digest = hashlib.sha256()
        with _reading(file), file.open("rb") as stream:
            for block in iter(partial(stream.read, BLOCK), b""):
                digest.update(block)
        within = file.relative_to(_literal(path)) if file != path else Path(file.name)
        whole.update(f"{within.as_posix()}\0{digest.hexdigest()}\n".encode("utf-8", "surrogateescape"))
    return whole.hexdigest()


# ------------------------------------------------------------------------------------------------ which files there are
def files(name: str, path: Path) -> list[Path]:
    """The files that a path names to a source, in order, at least one. Raises `DataError`."""
    found, problems = _look(name, path)
    for problem in problems:
        raise DataError(sentences(problem.what, problem.fix))
    return found


def suffix(file: Path) -> str:
    """How the name ends, in small letters, without that of a compression."""
    path = Path(file.name.lower())
    return path.with_suffix("").suffix if path.suffix in COMPRESSED else path.suffix


def _look(name: str, path: Path) -> tuple[list[Path], list[Problem]]:
    """The files that a path names to a source, and what is wrong with it."""
    noun, suffixes = FORMATS[name]
    try:
        found, problem = _find(path, noun, suffixes)
        problems = [problem] if problem else [p for file in found for p in _wrong(name, file)]
    except OSError as error:
        return [], [Problem(key="path", what=f"{error.filename or path}: cannot be read: {error.strerror}")]
    return found, problems


def _find(path: Path, noun: str, suffixes: tuple[str, ...]) -> tuple[list[Path], Problem | None]:
    if path.is_file() or _leads_nowhere(path):  # which is told of with what else is wrong with files
        return [path], None
    ends = f"{', '.join(suffixes)} (and these with {', '.join(COMPRESSED)})"
    if path.is_dir():
        found = [file for file in _below(path) if suffix(file) in suffixes]
        what, fix = f"no {noun} file in the directory {path}", f"It takes files that end in {ends}"
    elif path.exists():
        found = []
        what, fix = f"not a file: {path}", f"Give the path of a {noun} file"
    elif glob.has_magic(str(path)):
        root = _literal(path)
        pattern = str(path.relative_to(root))
        matches = glob.iglob(pattern, root_dir=root, recursive=True)  # noqa: PTH207 - ** of Path is of directories
        found = [file for match in set(matches) if (file := root / match).is_file() or _leads_nowhere(file)]
        what, fix = f"no file matches {path}", "Give a pattern that matches one: * is any part of a name, ** any path"
    else:
        found = []
        what, fix = f"no such file: {path}", f"Give the path of a {noun} file"
    found.sort(key=Path.as_posix)
    return found, None if found else Problem(key="path", what=what, fix=fix)


def _below(directory: Path) -> Iterator[Path]:
    """All files below a directory but hidden ones."""

    def give_up(error: OSError) -> None:
        raise error

    for where, names, inside in os.walk(directory, onerror=give_up):
        names[:] = [name for name in names if not name.startswith(".")]
        yield from (Path(where, name) for name in inside if not name.startswith("."))


def _literal(path: Path) -> Path:
    """The part of a path that is there as it is written; what follows is a pattern, if anything does."""
    return next(parent for parent in (path, *path.parents) if parent.is_dir())


def _leads_nowhere(file: Path) -> bool:
    return file.is_symlink() and not file.exists()


def _wrong(name: str, file: Path) -> Iterator[Problem]:
    """What can be known of a file without reading it."""
    noun, end = FORMATS[name][0], suffix(file)
    others = [other for other, (_, suffixes) in FORMATS.items() if end in suffixes and other != name]
    if others and (name, end) not in ALSO_READ:
        fix = f'Use the source that reads it: use = "{others[0]}"'
        yield Problem(key="path", what=f"not a {noun} file by its name: {file}", fix=fix)
    elif _leads_nowhere(file):
        yield Problem(key="path", what=f"a link to a file that is not there: {file}", fix="Mend it, or delete it")
    elif file.stat().st_size == 0:
        yield Problem(key="path", what=f"the file is empty: {file}", fix="Give one with rows")


# --------------------------------------------------------------------------------------------------- what is in a file
@contextlib.contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """A file's bytes, unpacked, from behind the mark that some programs put before UTF-8.

    Raises `DataError`, also for what goes wrong while the block reads: a file that ends too early, a damaged archive.
    """
    with _reading(path), io.BufferedReader(cast(io.RawIOBase, _unpacked(path)), BLOCK) as stream:
        head = stream.peek(8)
        if not head:
            raise DataError(f"{path}: the file is empty. Give one with rows")
        for magic, what, fix in MAGIC:
            if head.startswith(magic):
                raise DataError(f"{path}: {what} by its content. {fix}")
        if head.startswith(b"\xef\xbb\xbf"):
            stream.read(3)
        yield cast("IO[bytes]", stream)


def lines(path: Path, reject: Reject) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their ends, numbered from 1. One longer than `LONGEST` is rejected and passed over."""
    with opened(path) as stream:
        number = 0
        for line in iter(partial(stream.readline, LONGEST), b""):
            number += 1
            if len(line) < LONGEST or line.endswith(b"\n"):
                yield number, line
                continue
            while line and not line.endswith(b"\n"):
                line = stream.readline(LONGEST)
            reject(
                DataError(f"{path}:{number}: the line is longer than {LONGEST >> 20} MiB. Is this the right format?")
            )


def text(line: bytes, where: object) -> str:
    """The text of a line. Raises `DataError`."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 (byte {error.start} of the line). Save the file as UTF-8") from error


def _unpacked(path: Path) -> IO[bytes]:
    match path.suffix.lower():
        case ".gz":
            return cast("IO[bytes]", gzip.open(path))
        case ".bz2":
            return bz2.open(path)
        case ".xz":
            return lzma.open(path)
        case ".zst":
            import pyarrow  # of which datasets needs a version with this codec; Python's own comes with 3.14

            path.open("rb").close()  # pyarrow's own error of a file that is not there names no cause
            return cast("IO[bytes]", pyarrow.input_stream(str(path), compression="zstd"))
    return path.open("rb", buffering=0)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what goes wrong while a file is read into `DataError`."""
    packed = path.suffix.lower() in COMPRESSED
    again = "Get the file anew, or pack it again"
    try:
        yield
    except EOFError as error:
        raise DataError(f"{path}: the archive is cut off before its end. {again}") from error
    except (zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path}: the archive is damaged: {error}. {again}") from error
    except OSError as error:
        if packed and error.errno is None:  # gzip, bz2 and pyarrow have no kind of their own
            if "Truncated" in str(error):
                raise DataError(f"{path}: the archive is cut off before its end. {again}") from error
            raise DataError(f"{path}: the archive is damaged: {error}. {again}") from error
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
