"""Hooks that are deprecated: marked where they are specified, told of whoever implements them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fitune.plugin.deprecation import Deprecation, hook_mark, warn
from fitune.plugin.eventspecs import EventHooks
from fitune.plugin.extendspecs import ExtendHooks
from fitune.plugin.hookspecs import OfferHooks


def mark_of_hook(hook: str) -> Deprecation | None:
    """How a hook is deprecated; None for one that is not, or is not there."""
    for specification in (OfferHooks, ExtendHooks, EventHooks):
        if (found := vars(specification).get(hook)) is not None:
            return hook_mark(found)
    return None


def warn_of_hook(hook: str, function: Callable[..., Any]) -> None:
    """Warn of a function that implements a hook which is deprecated. Raises `PluginError` where that is gone."""
    if (mark := mark_of_hook(hook)) is not None:
        code = getattr(inspect.unwrap(function), "__code__", None)
        place = "" if code is None else f" ({'/'.join(Path(code.co_filename).parts[-2:])}:{code.co_firstlineno})"
        warn(f"the hook {hook}{place}", mark)
