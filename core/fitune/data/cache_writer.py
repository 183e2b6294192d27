"""Writes prepared rows to an Arrow file, a record batch at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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
