"""Draws on a terminal, past the filter of what is printed; what it draws of others is text all the same."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from fitune.cli.printing import as_it_is
from fitune.recipe.secrets import told


class TextConsole(Console):
    """A console on which all text is text."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As the console does, of text."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text in ("", "\n", " "):
                yield segment
            else:
                yield Segment(told(segment.text, prose=True), segment.style)

    @property
    def file(self) -> Any:
        """Where it writes to, past the filter."""
        return _Passing(super().file)

    @file.setter
    def file(self, new_file: Any) -> None:
        self._file = new_file


class _Passing:
    """A stream to which a console writes as it is."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with as_it_is():
            return int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
