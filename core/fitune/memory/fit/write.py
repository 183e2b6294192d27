"""A plain recipe of what a fit has chosen, as a file: it says all that the choice depends on, and runs as it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import tomli_w

from fitune.errors import RunError, one_line
from fitune.runs.atomic import write_file

if TYPE_CHECKING:
    from fitune.memory.fit.result import Fitted


def written(fitted: Fitted, command: str) -> str:
    """The recipe as TOML, every choice explicit, under a comment that says where it comes from."""
    from fitune.memory.report import size  # which imports torch: a place is looked for before that

    forecast, card = fitted.forecast, fitted.card
    spare = card.usable - forecast.margin - forecast.reserved
    head = (
        f"Written by: {command}",
        f"For {card.title}, {size(card.memory)}, of which a run can have {size(card.usable)}",
        f"Forecast: {size(forecast.allocated)} allocated and {size(forecast.reserved)} reserved at most, "
        f"margin {size(forecast.margin)}, {size(spare)} to spare",
    )
    lines = "".join(f"# {one_line(line)}\n" for line in head)
    return f"{lines}\n{tomli_w.dumps(fitted.recipe.to_toml())}"


def must_have_place(path: Path) -> None:
    """Raise `RunError` if no file can be at this path, before a search is made for it."""
    if path.is_dir():
        raise RunError(f"{path} is a directory. Give the path of a file, e.g. {path / 'fitted.toml'}")
    if not path.parent.is_dir():
        raise RunError(f"{path} cannot be written: there is no directory {path.parent}. Make it, or give another path")


def write(text: str, path: Path) -> None:
    """Write a file whole or not at all.

    Raises `RunError` if it cannot be written, or is there with another content.
    """
    must_have_place(path)
    try:
        if path.exists():
            if path.read_bytes() == text.encode():
                return
            raise RunError(f"{path} is there, with another content: nothing is overwritten. Give another --write")
        write_file(path, text)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}. Give another --write") from error
