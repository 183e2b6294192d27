"""Files that a command writes for a user, who may have others of that name: nothing is overwritten."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fitune.cli.printing import say
from fitune.errors import RunError, cause


def write_new(files: Mapping[Path, str]) -> None:
    """Write files that are not there yet, all or none, and say so. Raises `RunError`."""
    if (there := next((path for path in files if path.exists() or path.is_symlink()), None)) is not None:
        raise RunError(f"{there} is there already: nothing is overwritten. Give another --to")
    for path, text in files.items():
        try:
            with path.open("x", encoding="utf-8") as out:
                out.write(text)
        except OSError as error:
            raise RunError(f"{path} could not be written: {cause(error)}. Give another --to") from error
        say(f"written: {path}", err=True)
