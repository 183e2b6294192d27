"""Work that is done many times over in the same way: a forecast traces it once and counts it as often as it is done.

For a plugin that computes in pieces. Memory is the same with each piece, once two of them have been traced: the first
may leave something behind (a sum that the others add to).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

_times: ContextVar[int] = ContextVar("times", default=1)
_module: ContextVar[nn.Module | None] = ContextVar("module", default=None)


@contextlib.contextmanager
def standing_for(times: int, module: nn.Module | None = None) -> Iterator[None]:
    """What is computed in here, with tensors without values, stands for so many of its kind.

    In a backward pass it is this module's, also where gradients are taken anew, of which nobody else would know.
    """
    tokens = _times.set(times * _times.get()), _module.set(module)
    try:
        yield
    finally:
        _times.reset(tokens[0])
        _module.reset(tokens[1])


def module() -> nn.Module | None:
    """Whose piece is computed now, if somebody has said."""
    return _module.get()


def times() -> int:
    """How many what is computed now stands for."""
    return _times.get()
