"""Writes prepared rows to an Arrow file, a record batch at a time.

Columns for extras are there only where rows have some: `extras.NAME`, a list of a number for each document.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fitune.errors import DataError
from fitune.plugin.dataflow import Example

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

ROWS_IN_BATCH = 1024
"""Most rows in an Arrow record batch, which is what a writer holds in memory."""

TOKENS_IN_BATCH = 2**22
"""A record batch ends with the row that reaches so many tokens: long rows would fill the memory, and overflow Arrow's
offsets of 32 bits."""

EXTRAS = "extras."
"""Before the name of an extra in that of its column."""


class Writer:
    """Writes examples to an Arrow file, holding no more than a record batch of them."""

    def __init__(self, file: Path) -> None:
        import pyarrow as pa

        self._tokens = pa.list_(pa.int32())
        self._numbers = pa.list_(pa.float64())
        self._extras: tuple[str, ...] = ()
        self._file = file
        self._digest = hashlib.sha256()
        self.files: dict[str, int] = {}

    def write(self, examples: Iterable[Example]) -> int:
        """Write all examples; gives their number. Raises `DataError` for extras that not all of them have."""
        import pyarrow as pa

        written = 0
        parts = _parts(examples)
        first = next(parts, [])
        self._extras = tuple(sorted(first[0].extras)) if first else ()
        schema = self._schema()
        with pa.OSFile(str(self._file), "wb") as sink, pa.ipc.new_file(sink, schema) as out:
            for part in itertools.chain([first] if first else [], parts):
                out.write_batch(self._batch(part, schema))
                written += len(part)
        return written

    @property
    def digest(self) -> str:
        """Of the content of all rows that were written."""
        return self._digest.hexdigest()

    def _schema(self) -> pa.Schema:
        import pyarrow as pa

        lists = dict.fromkeys(("input_ids", "labels", "lengths"), self._tokens)
        extras = {EXTRAS + name: self._numbers for name in self._extras}
        return pa.schema({**lists, "file": pa.int32(), "row": pa.int64(), **extras})

    def _batch(self, part: Sequence[Example], schema: pa.Schema) -> pa.RecordBatch:
        import pyarrow as pa

        for example in part:
            self._must_have_extras(example)
            for values in (example.input_ids, example.labels):
                self._digest.update(f"{len(values)} ".encode() + values.astype("<i4").tobytes())
            self._digest.update(repr(tuple(map(int, example.lengths))).encode())
            for name in self._extras:
                self._digest.update(repr((name, *map(float, example.extras[name]))).encode())
        files = [self.files.setdefault(example.origin.file, len(self.files)) for example in part]
        columns = [
            _lists([example.input_ids for example in part]),
            _lists([example.labels for example in part]),
            pa.array([example.lengths for example in part], type=self._tokens),
            pa.array(files, type=pa.int32()),
            pa.array([example.origin.row for example in part], type=pa.int64()),
            *(pa.array([example.extras[name] for example in part], type=self._numbers) for name in self._extras),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=schema)

    def _must_have_extras(self, example: Example) -> None:
        """Raise `DataError` if a row has other extras than the first, or not one a document."""
        names = tuple(sorted(example.extras))
        if names != self._extras:
            raise DataError(
                f"{example.origin}: its extras are {', '.join(names) or 'none'}, but those of the rows before it are "
                f"{', '.join(self._extras) or 'none'}. All rows of a recipe need the same"
            )
        for name in names:
            if len(example.extras[name]) != example.documents:
                numbers = len(example.extras[name])
                raise DataError(
                    f'{example.origin}: extra "{name}" has {numbers} numbers for {example.documents} documents'
                )


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
    values = np.concatenate(arrays).astype(np.int32, copy=False)
    parts = [pa.Array.from_buffers(pa.int32(), len(one), [None, pa.py_buffer(one)]) for one in (offsets, values)]
    return pa.ListArray.from_arrays(*parts)  # `pa.array` of numpy's would import pandas, which takes seconds
