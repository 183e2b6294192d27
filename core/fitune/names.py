"""Names that become part of a path: of a run, and of the directory that holds what was trained."""

from __future__ import annotations

import re

from fitune.errors import Problem
from fitune.options import toml_text

LONGEST = 100
"""Bytes of a run's name: a file's name has 255 at most, and the run's directory adds the time."""
PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""A directory's name that means the same everywhere, and that no file of a run can have: those have a suffix."""
TAKEN = frozenset({"checkpoints", "non-finite", "lock"})
"""What else a run's directory holds."""


def name_problem(name: str) -> Problem | None:
    """What is wrong with the name of a run; None if it can be part of a directory's name."""
    what, fix = f'"name" is {toml_text(name)}', "Use letters, digits and hyphens"
    if not name.isprintable() or not name.strip() or set(name) & set("/\\"):
        return Problem(what=f"{what}, which cannot be part of a directory's name", fix=fix)
    if name.startswith("."):
        return Problem(what=f"{what}, and its directory would be hidden", fix=fix)
    if len(name.encode()) > LONGEST:
        return Problem(what=f'"name" has {len(name.encode())} bytes', fix=f"Use {LONGEST} at most")
    return None


def is_plain(directory: object) -> bool:
    """Whether a name can be that of the directory with what was trained: no path, and not another of a run's."""
    return isinstance(directory, str) and bool(PLAIN.fullmatch(directory)) and directory.lower() not in TAKEN
