"""What is printed is text: one filter on both streams, whatever the text came from, and what may pass it as it is.

A row, a name, a record, a template's message, a plugin's or a library's own words may hold sequences that a terminal
obeys: they recolour and rewrite it, set its title, its clipboard and its links. The streams escape all of them
(`fitune.recipe.secrets.told`). Two writers pass, since what they have of others is escaped before:
`fitune.cli.text_console`, which draws with such sequences, and `say_json`, whose escapes are those of JSON.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any, TextIO, cast

from fitune.errors import visible_json
from fitune.recipe.secrets import redacted_values, told

MOVES = re.compile(r"(?:\n|\x1b\[A)*")
"""All that a bar of tqdm writes to get from one line to another."""

_passing: ContextVar[bool] = ContextVar("passing", default=False)


class Filtered:
    """A text stream on which everything is text, and otherwise the stream that it stands for."""

    def __init__(self, stream: TextIO, *, prose: bool) -> None:
        """With `prose`, what looks like a setting that holds a password is not taken for one."""
        self._stream, self._prose = stream, prose

    def write(self, text: str) -> int:
        """Write it as text. At its start it may go back to the start of the line, as bars do."""
        if _passing.get() or MOVES.fullmatch(text):
            self._stream.write(text)
        else:
            start = "\r" if text.startswith("\r") else ""
            self._stream.write(start + told(text[len(start) :], prose=self._prose))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write one behind the other."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def filtered_streams() -> Iterator[None]:
    """While this lasts, what is printed is text."""
    streams = sys.stdout, sys.stderr
    sys.stdout = cast(TextIO, Filtered(sys.stdout, prose=True))
    sys.stderr = cast(TextIO, Filtered(sys.stderr, prose=False))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


def say(text: str = "", *, err: bool = False) -> None:
    """Print a line."""
    print(told(text, prose=not err), file=sys.stderr if err else sys.stdout)


def say_json(values: Any, *, plain: bool = True) -> None:
    """Print values as JSON: of ASCII characters, or else of all that no terminal obeys."""
    text = json.dumps(redacted_values(values), indent=2, ensure_ascii=plain)
    with as_it_is():
        print(visible_json(text))


@contextlib.contextmanager
def as_it_is() -> Iterator[None]:
    """While this lasts, the filter lets pass what this thread prints."""
    token = _passing.set(True)
    try:
        yield
    finally:
        _passing.reset(token)
