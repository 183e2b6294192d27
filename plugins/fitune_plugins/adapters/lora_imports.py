"""peft without bitsandbytes, where a model has no layer of that."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

HIDDEN = "bitsandbytes"

ANSWERS = ("is_bnb_available", "is_bnb_4bit_available")
"""Functions of peft that look for it once, and keep the answer."""


@contextlib.contextmanager
def without_bitsandbytes() -> Iterator[None]:
    """As if it was not installed, unless it is imported by now, as it is where a model has layers of it.

    peft imports it wherever it is installed, to look for such layers, and with it comes torch's compiler: two seconds
    of each start. What peft has learnt of it meanwhile is forgotten afterwards.
    """
    if HIDDEN in sys.modules:
        yield
        return
    hidden: dict[str, Any] = sys.modules
    hidden[HIDDEN] = None  # which makes its import an ImportError, and its spec None (`importlib.util.find_spec`)
    try:
        yield
    finally:
        hidden.pop(HIDDEN, None)
        imports = sys.modules.get("peft.import_utils")
        for name in ANSWERS:
            getattr(getattr(imports, name, None), "cache_clear", bool)()
