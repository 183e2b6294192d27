"""Everything that a user, a recipe or a plugin can get wrong.

    FtError                 one clear message; the command line prints it and exits with `exit_code`
    ├── RecipeError         a recipe with one or more problems, all of them listed
    ├── PluginError         a plugin that cannot be loaded, found or called
    ├── DataError           a row, a file or a data set that cannot be trained on
    ├── ModelError          a model, tokenizer or adapter that cannot be loaded or is not what it should be
    └── RunError            a run that cannot start, go on or be written
        └── Interrupted     a run that was asked to stop, and can go on

A traceback on a user's screen is a bug: whatever a user can cause is raised as one of these.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

CONTROLS = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e007f]"
)
"""Control characters but line ends and tabs, marks that turn the direction of writing (Unicode's TR 9), halves of
surrogate pairs, the byte order mark, and characters that nobody sees; not the joiners that scripts and emoji need."""

LONGEST = 3000
"""Characters of a line that says what is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong with a recipe: where, what, and what to do about it."""

    key: str = ""
    """Dotted key, e.g. `train.steps`; in a provider's own check, relative to its table, e.g. `path`."""
    what: str
    """What is wrong, without a full stop."""
    fix: str = ""
    """What to do, without a full stop."""
    to_train: bool = False
    """Whether it keeps from training alone: what was trained before can be merged in spite of it."""
    to_run: bool = False
    """Whether it keeps from running here alone: `ft plan` forecasts the memory of a run in spite of it."""

    def sentence(self) -> str:
        """What is wrong and what to do, in one line."""
        return sentences(self.what, self.fix)


class FtError(Exception):
    """An error that a user can cause and mend; `message` says, in one line, what, where, why and what to do."""

    exit_code = 2
    shared = False
    """Whether the first of several processes knows of it, which is that one which tells the user."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        self.lines: tuple[str, ...] = (shortened(one_line(message)),)
        """One line for each thing that is wrong, as the command line prints them."""


class RecipeError(FtError):
    """A recipe that cannot be run; `lines` holds one line for each problem found."""

    def __init__(self, lines: Sequence[str]) -> None:
        each = tuple(shortened(one_line(line)) for line in lines)
        super().__init__("\n".join(each))
        self.lines = each


class PluginError(FtError):
    """A plugin that cannot be loaded, found or called."""


class DataError(FtError):
    """A row, a file or a data set that cannot be trained on."""


class ModelError(FtError):
    """A model, tokenizer or adapter that cannot be loaded, or is not what it should be."""


class RunError(FtError):
    """A run that cannot start, go on or be written."""


class Interrupted(RunError):
    """A run that was asked to stop, by a signal or a plugin: it finished its step, and can go on from there."""

    exit_code = 3


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that names the known name nearest to `name`, or all of them if none is near."""
    choices = sorted(known)
    folded = {choice.casefold(): choice for choice in reversed(choices)}
    close = difflib.get_close_matches(name.casefold(), sorted(folded), n=1, cutoff=0.5)
    if close:
        return f'Did you mean "{folded[close[0]]}"?'
    return f"Known: {', '.join(choices)}" if choices else "No name is known here"


def sentences(*texts: str) -> str:
    """Texts that come without a full stop, as sentences one behind the other; empty ones are left out."""
    kept = [text for text in texts if text]
    return " ".join([*(text if text.endswith("?") else f"{text}." for text in kept[:-1]), *kept[-1:]])


def one_line(text: str) -> str:
    """The text without line ends, which another library's message may bring, and with control characters `visible`."""
    return visible(" ".join(filter(None, map(str.strip, text.splitlines()))))


def shortened(line: str) -> str:
    """The line without its middle, if it is longer than a page: it may name each of 100,000 columns, or hold a row."""
    left_out = len(line) - LONGEST
    if left_out <= 0:
        return line
    return f"{line[: LONGEST * 3 // 4]} ... ({left_out:,} characters left out) ... {line[-LONGEST // 4 :]}"


def visible(text: str) -> str:
    """The text with escapes in place of what a terminal obeys or hides, line ends and tabs aside.

    Data may hold escape sequences that recolour, rewrite or retitle a terminal, or turn the direction of writing round.
    """
    return CONTROLS.sub(_escaped, text)


def visible_json(text: str) -> str:
    """JSON with its own escapes in place of what a terminal obeys: by itself it escapes but the first 32 characters."""
    return CONTROLS.sub(lambda found: "".join(f"\\u{unit:04x}" for unit in _units(found[0])), text)


def _units(character: str) -> tuple[int, ...]:
    """A character in UTF-16, which JSON's escapes are of."""
    code = ord(character)
    return (code,) if code < 2**16 else (0xD800 + (code - 2**16 >> 10), 0xDC00 + (code & 0x3FF))


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 2**16 else f"\\U{code:08x}"


def cause(error: BaseException) -> str:
    """Why, in a line: of an error of the system what it says without its number, of others as `described`."""
    return error.strerror if isinstance(error, OSError) and error.strerror else described(error)


def described(error: BaseException) -> str:
    """An error in a line: one that is meant for users by its message, another by its type and what it says."""
    said = " ".join(str(error).split())
    if isinstance(error, FtError):
        return said
    if isinstance(error, ImportError) and str(error.name).partition(".")[0] == "fitune":
        said = _not_there(error) or said
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _not_there(error: ImportError) -> str:
    """What is said of a name or a module that somebody imports from fitune, and that it does not have."""
    if isinstance(error, ModuleNotFoundError):
        return f"there is no {error.name}. Plugins import names from fitune itself: docs/api.md lists them"
    name = re.match(r"cannot import name '(\w+)' from 'fitune' ", str(error))
    if name is None:
        return ""
    meant = nearest(name[1], sys.modules["fitune"].__all__)
    return f'fitune has no "{name[1]}". {meant if meant.endswith("?") else "docs/api.md lists what it has"}'
