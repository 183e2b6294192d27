"""What goes wrong beside training, where training goes on: told on standard error, once, and not at every step."""

from __future__ import annotations

import sys


class Complaints:
    """Says each thing once, until it is mended."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def tell(self, subject: str, what: str) -> None:
        """Say what is wrong with a subject, unless that was said already."""
        if subject not in self._told:
            self._told.add(subject)
            print(f"warning: {what}", file=sys.stderr)

    def mended(self, subject: str, what: str) -> None:
        """Say that a subject is as it should be again, if it was complained of."""
        if subject in self._told:
            self._told.remove(subject)
            print(f"note: {what}", file=sys.stderr)


def cause(error: BaseException) -> str:
    """Why, in a line: of an error of the system without its number, of others with their type."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")
