"""What stands before the weights in a GGUF file, read once in a process and quickly.

transformers reads a file's header anew for the configuration, for the tokenizer and for the model, and gguf's reader
makes several views of a memory map for each of the vocabulary's tokens: seconds each time. While a file is loaded here,
plain views stand for those, and what was read is kept for as long as the file is the same.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Key = tuple[str, int, int]

_read: dict[Key, Any] = {}
"""What transformers makes of a header, by the file's path, size and time of its last change; of one file at a time."""


@contextlib.contextmanager
def read_once() -> Iterator[None]:
    """A context in which transformers reads the header of a GGUF file quickly, and once."""
    try:
        package: Any = importlib.import_module("gguf")
    except ImportError:  # which transformers tells of
        yield
        return
    reading: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    whole, reader = reading.load_gguf_checkpoint, package.GGUFReader

    def kept(path: Any, return_tensors: bool = False, **named: Any) -> Any:
        if return_tensors:
            return whole(path, return_tensors=True, **named)
        key = _key(path)
        if key not in _read:
            made = whole(path, return_tensors=False, **named)
            _read.clear()
            _read[key] = made
        return copy.deepcopy(_read[key])  # transformers changes what it is given

    reading.load_gguf_checkpoint, package.GGUFReader = kept, _quick(reader)
    try:
        yield
    finally:
        reading.load_gguf_checkpoint, package.GGUFReader = whole, reader


def _key(path: Any) -> Key:
    found = Path(path).stat()
    return str(Path(path).resolve()), found.st_size, found.st_mtime_ns


def _quick(reader: Any) -> Any:
    """The reader, whose arrays are plain ones: a memory map does more at each slice, and the same memory is behind."""
    import numpy as np

    class Quick(reader):  # type: ignore[misc]
        _plain: Any = None

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            if self._plain is None:
                self._plain = np.asarray(self.data)
            kind = np.dtype(dtype).newbyteorder(self.byte_order if override_order is None else override_order)
            end = int(offset) + kind.itemsize * int(count)
            return self._plain[int(offset) : end].view(kind)[: int(count)]

    return Quick
