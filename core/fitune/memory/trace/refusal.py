"""Says in words why a run cannot be traced, where torch or transformers gave up for want of values."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

from fitune.errors import FtError, ModelError
from fitune.memory.trace.modules import OUTSIDE, ModuleTracker
from fitune.memory.trace.tracer import Tracer
from fitune.plugin.model import unwrapped


@contextlib.contextmanager
def in_words(model: nn.Module, modules: ModuleTracker, tracer: Tracer) -> Iterator[None]:
    """Whatever fails inside becomes a `ModelError` that names the module and the operation."""
    try:
        yield
    except FtError:
        raise
    except Exception as error:  # torch, transformers and plugins each raise kinds of their own
        module = tracer.failed_in if tracer.failing else modules.failed(error)
        where = "a part outside of its layers" if module == OUTSIDE else f"its {module}"
        what = f" calls {tracer.failing}, which" if tracer.failing else ""
        raise ModelError(
            f"the run cannot be forecast: {type(unwrapped(model)).__name__}: {where}{what} cannot be traced without "
            f"values: {_first_line(error)}"
        ) from error


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
