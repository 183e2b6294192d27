"""What stands before the weights in a GGUF file, read once in a process and quickly.

transformers reads a file's header anew for the configuration, for the tokenizer and for the model, gguf's reader makes
several views of a memory map for each of the vocabulary's tokens, and both make a table of a model's names anew for
each of its modules: seconds each time. While a file is loaded here, plain views stand for those, and what was read or
made is kept: of a file for as long as it is the same, and its open reader until its weights were read.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from struct import Struct
from typing import Any

Key = tuple[str, int, int]

_read: dict[Key, Any] = {}
"""What transformers makes of a header, by the file's path, size and time of its last change; of one file at a time."""

_readers: dict[Key, Any] = {}
"""Readers whose weights have not been read yet, by the same; of one file at a time."""


@contextlib.contextmanager
def read_once() -> Iterator[None]:
    """A context in which transformers reads the header of a GGUF file quickly, and once."""
    try:
        package: Any = importlib.import_module("gguf")
    except ImportError:  # which transformers tells of
        yield
        return
    reading: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    whole, reader, names = reading.load_gguf_checkpoint, package.GGUFReader, package.get_tensor_name_map
    quick = _quick(reader)

    def kept(path: Any, return_tensors: bool = False, **named: Any) -> Any:
        if return_tensors:
            try:
                return whole(path, return_tensors=True, **named)
            finally:
                _readers.clear()  # it holds the file open
        key = _key(path)
        if key not in _read:
            made = whole(path, return_tensors=False, **named)
            _read.clear()
            _read[key] = made
        return copy.deepcopy(_read[key])  # transformers changes what it is given

    def opened(path: Any) -> Any:
        key = _key(path)
        if key not in _readers:
            _readers.clear()
            _readers[key] = quick(path)
        return _readers[key]

    reading.load_gguf_checkpoint, package.GGUFReader, package.get_tensor_name_map = kept, opened, cache(names)
    try:
        yield
    finally:
        reading.load_gguf_checkpoint, package.GGUFReader, package.get_tensor_name_map = whole, reader, names


def _key(path: Any) -> Key:
    found = Path(path).stat()
    return str(Path(path).resolve()), found.st_size, found.st_mtime_ns


def _quick(reader: Any) -> Any:
    """The reader, whose arrays are plain ones: a memory map does more at each slice, and the same memory is behind.
    Those of an array of texts are views of bytes, which are made faster still.
    """
    import numpy as np

    types: Any = importlib.import_module("gguf").GGUFValueType

    class Quick(reader):  # type: ignore[misc]
        _plain: Any = None

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            if self._plain is None:
                self._plain = np.asarray(self.data)
            kind = np.dtype(dtype).newbyteorder(self.byte_order if override_order is None else override_order)
            end = int(offset) + kind.itemsize * int(count)
            return self._plain[int(offset) : end].view(kind)[: int(count)]

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            offset = int(orig_offs)
            kind = self._get(offset, np.uint32) if raw_type == types.ARRAY else None
            number = None if kind is None else self.gguf_scalar_to_np.get(types(kind[0]))
            if kind is None or (number is None and kind[0] != types.STRING):
                return super()._get_field_parts(orig_offs, raw_type)
            count = self._get(offset + 4, np.uint64)
            items, start = int(count[0]), offset + 12
            if number is None:
                order = kind.dtype.str[0]
                parts = list(chain.from_iterable(_texts(memoryview(self._plain), start, items, order)))
                places = list(range(3, 3 + 2 * items, 2))
            else:
                parts = list(self._get(start, number, items).reshape(-1, 1))
                places = list(range(2, 2 + items))
            size = 12 + sum(part.nbytes for part in parts)
            return size, [kind, count, *parts], places, [types.ARRAY, types(kind[0])] if items else [types.ARRAY]

    return Quick


def _texts(view: memoryview, start: int, number: int, order: str) -> Iterator[tuple[memoryview, memoryview]]:
    """The length and the bytes of so many texts that stand one behind the other."""
    length_at = Struct(f"{order}Q").unpack_from
    for _ in range(number):
        text = start + 8
        end: int = text + length_at(view, start)[0]
        yield view[start:text], view[text:end]
        start = end
