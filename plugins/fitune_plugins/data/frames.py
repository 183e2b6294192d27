"""Frames: what a template writes around the contents of messages with the same roles, so that one rendering is enough.

Most rows of a data set have a question and an answer, each nothing but a content. Where a row's text is the frame of an
earlier row with its own contents in it, character by character, it is known where each of them stands.
"""

from __future__ import annotations

from fitune_plugins.data.chat_template import Messages
from fitune_plugins.data.parts import TAG, Found, Part, Span, content_of
from fitune_plugins.data.turns import THOUGHTS

MOST = 1000
"""Frames that are kept."""

LONGEST = 100
"""Messages of the longest conversation whose frame is kept."""


class Frames:
    """The frames of one template, by the roles of the messages."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], list[str]] = {}

    def find(self, messages: Messages, text: str) -> Found | None:
        """Where the contents stand in the text; None if it is not of a known frame."""
        roles = _roles(messages)
        frame = self._known.get(roles) if roles else None
        if frame is None:
            return None
        places: dict[Part, Span] = {}
        end = 0
        for number, (before, turn) in enumerate(zip(frame, messages, strict=False)):
            content = turn["content"]
            begin = end + len(before)
            end = begin + len(content)
            whole = content == content.strip() != "" and not TAG.search(content)
            if not whole or not text.startswith(before + content, begin - len(before)):
                return None
            places[content_of(number, content)] = (begin, end)
        return Found(places=places) if text[end:] == frame[-1] else None

    def learn(self, messages: Messages, text: str, found: Found) -> None:
        """Keep the frame of a conversation of which each message is one part, all of them found."""
        roles = _roles(messages)
        places = sorted(found.places.items(), key=lambda item: item[1])
        whole = [content_of(number, turn["content"]) for number, turn in enumerate(messages)]
        if not roles or len(self._known) >= MOST or [part for part, _ in places] != whole:
            return
        borders = [0, *(border for _, place in places for border in place), len(text)]
        self._known[roles] = [text[begin:end] for begin, end in zip(borders[::2], borders[1::2], strict=True)]


def _roles(messages: Messages) -> tuple[str, ...]:
    """The roles of messages that are nothing but contents; none if there is more, or there are many."""
    if len(messages) > LONGEST or any(key in turn for turn in messages for key in ("tool_calls", *THOUGHTS)):
        return ()
    return tuple(turn["role"] for turn in messages)
