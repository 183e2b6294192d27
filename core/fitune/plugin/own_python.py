"""How fitune starts a Python of its own: one that imports what this one does, and nothing from the working directory.

`python -m` looks in the working directory first, which may be a stranger's: a file `json.py` there would be run. Nor
does a process of `ft` import the package `kernels`, by which others fetch code.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, cast

ASKED = "USE_HUB_KERNELS"
"""The variable that lets libraries fetch kernels: transformers' own."""

ABSENT = object()
"""Of a module that nobody has asked for."""

PROGRAM = """\
import sys
sys.path[:] = [place for place in sys.path if place]
import runpy
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


def command_of(module: str, *arguments: str) -> list[str]:
    """The command that runs a module, as `python -m` does, with these arguments."""
    return [sys.executable, "-c", PROGRAM, module, *arguments]


def leave_kernels_out() -> None:
    """Have nothing import the package `kernels`, unless the variable asks for it: transformers and bitsandbytes fetch
    compiled code of the hub by it, which no recipe names, wherever they find a use.
    """
    if os.environ.setdefault(ASKED, "NO").upper() not in ("1", "ON", "YES", "TRUE"):
        cast(dict[str, Any], sys.modules).setdefault("kernels", None)


@contextlib.contextmanager
def without_kernels() -> Iterator[None]:
    """The same for a while, in the Python of somebody else, who may import the package before and behind."""
    asked, before = os.environ.get(ASKED), sys.modules.get("kernels", ABSENT)
    leave_kernels_out()
    try:
        yield
    finally:
        if asked is None:
            os.environ.pop(ASKED, None)
        if before is ABSENT and sys.modules.get("kernels", ABSENT) is None:
            del sys.modules["kernels"]
