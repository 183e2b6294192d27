"""How fitune starts a Python of its own: one that imports what this one does, and nothing from the working directory.

`python -m` looks in the working directory first, which may be a stranger's: a file `json.py` there would be run.
"""

from __future__ import annotations

import sys

PROGRAM = """\
import sys
sys.path[:] = [place for place in sys.path if place]
import runpy
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


def command_of(module: str, *arguments: str) -> list[str]:
    """The command that runs a module, as `python -m` does, with these arguments."""
    return [sys.executable, "-c", PROGRAM, module, *arguments]
