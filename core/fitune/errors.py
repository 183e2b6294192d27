"""Everything that a user, a recipe or a plugin can get wrong.

    FtError                 one clear message; the command line prints it and exits with `exit_code`
    ├── RecipeError         a recipe with one or more problems, all of them listed
    ├── PluginError         a plugin that cannot be loaded, found or called
    ├── DataError           a row, a file or a data set that cannot be trained on
    ├── ModelError          a model, tokenizer or adapter that cannot be loaded or is not what it should be
    └── RunError            a run that cannot start, go on or be written

A traceback on a user's screen is a bug: whatever a user can cause is raised as one of these.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong with a recipe: where, what, and what to do about it."""

    key: str = ""
    """Dotted key, e.g. `train.steps`; in a provider's own check, relative to its table, e.g. `path`."""
    what: str
    """What is wrong, without a full stop."""
    fix: str = ""
    """What to do, without a full stop."""

    def sentence(self) -> str:
        """What is wrong and what to do, in one line."""
        return f"{self.what}. {self.fix}" if self.fix else self.what


class FtError(Exception):
    """An error that a user can cause and mend; `message` says what, where, why and what to do."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class RecipeError(FtError):
    """A recipe that cannot be run; `lines` holds one line for each problem found."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = tuple(lines)


class PluginError(FtError):
    """A plugin that cannot be loaded, found or called."""


class DataError(FtError):
    """A row, a file or a data set that cannot be trained on."""


class ModelError(FtError):
    """A model, tokenizer or adapter that cannot be loaded, or is not what it should be."""


class RunError(FtError):
    """A run that cannot start, go on or be written."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that names the known name nearest to `name`, or all of them if none is near."""
    choices = sorted(known)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    if close:
        return f'Did you mean "{close[0]}"?'
    return f"Known: {', '.join(choices)}" if choices else "None is known here"
