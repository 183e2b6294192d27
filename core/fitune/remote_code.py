"""Code that comes with a model: it runs only if the recipe says so and the command line repeats it.

An options dataclass has a field `trust_remote_code` where its provider can run such code. The recipe is data that is
passed on; the flag is what the person at the keyboard says, each time, also for a run that goes on.
"""

from __future__ import annotations

from fitune.errors import Problem

FLAG = "--trust-remote-code"
KEY = "trust_remote_code"


def untrusted(options: object, trusted: bool) -> Problem | None:
    """What is wrong with options that ask for such code, where the command line has not repeated it; else None."""
    if trusted or not getattr(options, KEY, False):
        return None
    source = getattr(options, "path", None) or getattr(options, "id", None) or "what this table names"
    return Problem(
        what=f'"{KEY}" is true: Python code that comes with {source} would run here, with all of your rights',
        fix=f"Read that code, then repeat it on the command line: {FLAG}. Or remove the key",
    )
