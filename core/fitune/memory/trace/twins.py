"""Memory twins of custom kernels: what stands in their place while a run is traced."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from fitune.errors import PluginError
from fitune.plugin.records import MemoryTwin
from fitune.plugin.registry import Registry

if TYPE_CHECKING:
    from fitune.memory.trace.tracer import Tracer


@contextlib.contextmanager
def in_place_of_kernels(twins: Sequence[MemoryTwin], tracer: Tracer) -> Iterator[None]:
    """Put each twin where its kernel is looked up, and tell the tracer of kernels' scratch.

    Raises `PluginError` for a twin of something that does not exist.
    """
    with contextlib.ExitStack() as stack:
        for twin in twins:
            if twin.operation and twin.scratch is not None:
                tracer.learn(twin.operation, twin.scratch)
            if twin.twin is not None:
                home, name = place_of(twin)
                stack.callback(setattr, home, name, getattr(home, name))
                setattr(home, name, _stand_in(twin, twin.twin, tracer))
        yield


def place_of(twin: MemoryTwin) -> tuple[Any, str]:
    """The module or class, and the attribute of it, that a twin replaces. Raises `PluginError`."""
    module, _, path = twin.replaces.partition(":")
    *between, name = path.split(".")
    try:
        home: Any = importlib.import_module(module)
        for step in between:
            home = getattr(home, step)
        getattr(home, name)
    except (ImportError, AttributeError, ValueError) as error:
        raise PluginError(f'the memory twin "{twin.name}" replaces "{twin.replaces}", which is not there') from error
    return home, name


def _stand_in(twin: MemoryTwin, function: Callable[..., Any], tracer: Tracer) -> Callable[..., Any]:
    def stand_in(*args: Any, **named: Any) -> Any:
        results = function(*args, **named)
        if twin.scratch is not None:
            tracer.take(twin.name, twin.scratch((*args, *named.values()), results))
        return results

    return stand_in


def kernel_of(twin: MemoryTwin) -> Callable[..., Any]:
    """The kernel that a twin stands for. Raises `PluginError` if there is none."""
    import torch

    if twin.replaces:
        home, name = place_of(twin)
        return cast("Callable[..., Any]", getattr(home, name))
    library, operation, overload = [*twin.operation.split("."), "", ""][:3]
    try:
        return cast("Callable[..., Any]", getattr(getattr(getattr(torch.ops, library), operation), overload))
    except AttributeError as error:
        raise PluginError(f'the memory twin "{twin.name}" is of "{twin.operation}", which is not there') from error


def twins_of(registry: Registry) -> list[MemoryTwin]:
    """What plugins say of their kernels."""
    return [twin for _, found in registry.call("ft_memory_twins") for twin in found or ()]
