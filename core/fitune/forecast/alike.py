"""Work that is done many times over in the same way: a forecast traces it once and counts it as often as it is done.

For a plugin that computes in pieces. Memory is the same with each piece, once two of them have been traced: the first
may leave something behind (a sum that the others add to).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_times: ContextVar[int] = ContextVar("times", default=1)


@contextlib.contextmanager
def standing_for(times: int) -> Iterator[None]:
    """What is computed in here, with tensors without values, stands for so many of its kind."""
    token = _times.set(times * _times.get())
    try:
        yield
    finally:
        _times.reset(token)


def times() -> int:
    """How many what is computed now stands for."""
    return _times.get()
