"""A conversation as a template renders it, and where what it says stands in the text."""

from __future__ import annotations

from functools import cached_property
from itertools import accumulate

from fitune_plugins.data.chat_template import Messages, Template, Tools
from fitune_plugins.data.frames import Frames
from fitune_plugins.data.parts import Finder, Found, Part, Span, parts_of


class Reading:
    """A conversation as a template renders it."""

    def __init__(self, template: Template, messages: Messages, tools: Tools, text: str, frames: Frames) -> None:
        self.template, self.messages, self.tools, self.text, self.frames = template, messages, tools, text, frames

    @cached_property
    def found(self) -> Found:
        """Where the parts of the messages stand in the text."""
        known = None if self.tools else self.frames.find(self.messages, self.text)
        if known is not None:
            return known
        finder = Finder(lambda probe: self.template.render(probe, self.tools), self.messages, self.text)
        found = finder.find(parts_of(self.messages))
        if not self.tools:
            self.frames.learn(self.messages, self.text, found)
        return found

    @cached_property
    def bodies(self) -> dict[int, Span]:
        """From the first part of each message that stands in the text to its last."""
        bodies: dict[int, Span] = {}
        for part, (start, end) in self.found.places.items():
            first, last = bodies.get(part.message, (start, end))
            bodies[part.message] = (min(first, start), max(last, end))
        return bodies

    @cached_property
    def parts(self) -> dict[int, list[Part]]:
        """The parts of each message that stand in the text, in their order there."""
        parts: dict[int, list[Part]] = {}
        for part in sorted(self.found.places, key=self.found.places.__getitem__):
            parts.setdefault(part.message, []).append(part)
        return parts

    @cached_property
    def around(self) -> tuple[list[int], list[int]]:
        """For each message, where the parts of those before it end at most, and those behind it begin at least."""
        count, length = len(self.messages), len(self.text)
        ends = accumulate((self.bodies.get(at, (0, 0))[1] for at in range(count - 1)), max, initial=0)
        starts = accumulate(
            (self.bodies.get(at, (length, 0))[0] for at in range(count - 1, 0, -1)), min, initial=length
        )
        return list(ends), list(starts)[::-1]
