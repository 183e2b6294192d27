"""What messages say, part by part, and where each part stands in the text that a template makes of them.

Each part is put between two characters that the text does not hold, all parts in one rendering. If the text, without
these characters, is what it was, they show where each part stands, and which parts the template leaves out; however it
writes them: as JSON, XML or Python, stripped or in upper case. Parts that a template treats in another way because of
the characters are tried in smaller groups, and sought literally at last; the number of renderings is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, Literal

from fitune_plugins.data.chat_template import Messages, Refused
from fitune_plugins.data.turns import THOUGHTS

Kind = Literal["content", "thought", "call", "argument"]

Span = tuple[int, int]

Path = tuple["str | int", ...]
"""Keys and positions that lead to a text within a message."""

TAG = re.compile(r"</?think>")
"""What thoughts stand between that are written into a content."""

PRIVATE = (range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
"""Characters for private use."""

PROBES = 40
"""Most renderings in which parts are sought."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A text within a message that has to be in the rendered text."""

    message: int
    """Counted from 0."""
    kind: Kind
    what: str
    """For error messages, e.g. `its content`."""
    path: Path
    start: int
    """Where it begins within the text at `path`, white space left out."""
    end: int


def parts_of(messages: Messages) -> list[Part]:
    """The parts of all messages, in their order."""
    return [part for at, turn in enumerate(messages) for part in _of_turn(at, turn)]


def _of_turn(at: int, turn: Mapping[str, Any]) -> Iterator[Part]:
    answer = turn["role"] == "assistant"
    calls = turn.get("tool_calls") or () if answer else ()
    key = next((key for key in THOUGHTS if str(turn.get(key) or "").strip()), None) if answer else None
    if key is not None:
        yield _whole(at, "thought", "its thought", (key,), turn[key])
    yield from _of_content(at, turn.get("content") or "", answer=answer, called=bool(calls))
    for number, call in enumerate(calls):
        name = call["function"]["name"]
        path: Path = ("tool_calls", number, "function")
        yield _whole(at, "call", f'its call of the tool "{name}"', (*path, "name"), name)
        for inner, text in _texts(call["function"]["arguments"]):
            yield _whole(
                at, "argument", f'arguments of its call of the tool "{name}"', (*path, "arguments", *inner), text
            )


def _of_content(at: int, content: str, *, answer: bool, called: bool) -> Iterator[Part]:
    """A content's parts: its thoughts, and the rest. Of an answer that is blank, the place where it stands."""
    tags = [*TAG.finditer(content)] if answer else []
    starts, ends = [0, *(tag.end() for tag in tags)], [*(tag.start() for tag in tags), len(content)]
    closed = [*(tag.group() == "</think>" for tag in tags), False]
    found = [(content[start:end], start, inside) for start, end, inside in zip(starts, ends, closed, strict=True)]
    found = [piece for piece in found if piece[0].strip()] or [(content, 0, False)]
    for text, start, inside in found:
        bare = text.strip()
        if bare or (answer and not called):
            begin = start + len(text) - len(text.lstrip()) if bare else 0
            kind: Kind = "thought" if inside else "content"
            what = "its thought" if inside else "its content"
            yield Part(message=at, kind=kind, what=what, path=("content",), start=begin, end=begin + len(bare))


def content_of(at: int, content: str) -> Part:
    """A content that is one part, without white space around it."""
    return Part(message=at, kind="content", what="its content", path=("content",), start=0, end=len(content))


def _whole(at: int, kind: Kind, what: str, path: Path, text: str) -> Part:
    start = len(text) - len(text.lstrip())
    return Part(message=at, kind=kind, what=what, path=path, start=start, end=len(text.rstrip()))


def _texts(value: Any, path: Path = ()) -> Iterator[tuple[Path, str]]:
    """The texts within a value that are not blank."""
    if isinstance(value, str):
        if value.strip():
            yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(inner, (*path, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _texts(inner, (*path, number))


# ------------------------------------------------------------------------------------------------------ finding them


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Where parts stand in a text."""

    places: dict[Part, Span] = field(default_factory=dict)
    lost: list[Part] = field(default_factory=list)
    """Those that are not in the text: it is the same without them."""
    unclear: list[Part] = field(default_factory=list)
    """Those whose place cannot be told, e.g. since they stand there twice."""


class Finder:
    """Finds the parts of the messages of one conversation in their text."""

    def __init__(self, render: Callable[[Messages], str], messages: Messages, text: str) -> None:
        """`render` may raise `Refused`."""
        self.render, self.messages, self.text = render, messages, text
        self.left = PROBES

    def find(self, parts: Sequence[Part]) -> Found:
        """Where these parts stand, which have to be in their order."""
        found = Found()
        self._seek(parts, found)
        sought = sorted(found.unclear, key=lambda part: (part.message, part.start))
        found.unclear.clear()
        for part in sought:
            place = self._literally(part, found)
            if place is not None:
                found.places[part] = place
            elif self._cut(part):
                found.lost.append(part)
            else:
                found.unclear.append(part)
        return found

    def _seek(self, parts: Sequence[Part], found: Found) -> None:
        if not parts or self._probe(parts, found):
            return
        groups: dict[tuple[str, Kind], list[Part]] = {}
        for part in parts:
            groups.setdefault((self.messages[part.message]["role"], part.kind), []).append(part)
        if len(groups) == 1:
            if len(parts) == 1 or self.left <= 0:
                found.unclear.extend(parts)
                return
            half = len(parts) // 2
            self._seek(parts[:half], found)
            self._seek(parts[half:], found)
            return
        for group in groups.values():
            self._seek(group, found)

    def _probe(self, parts: Sequence[Part], found: Found) -> bool:
        """Whether one rendering shows where these parts stand."""
        self.left -= 1
        marks = private(self.text, 2 * len(parts))
        if self.left < 0 or len(marks) < 2 * len(parts):
            return False
        edges = list(zip(marks[::2], marks[1::2], strict=True))
        try:
            probe = self.render(between(self.messages, dict(zip(parts, edges, strict=True))))
        except Refused:
            return False
        if probe.translate(dict.fromkeys(map(ord, marks))) != self.text:
            return False
        places: dict[str, list[int]] = {mark: [] for mark in marks}
        for passed, match in enumerate(match for match in _PRIVATE.finditer(probe) if match.group() in places):
            places[match.group()].append(match.start() - passed)
        for part, (opening, closing) in zip(parts, edges, strict=True):
            opens, closes = places[opening], places[closing]
            if not opens and not closes:
                found.lost.append(part)
            elif len(opens) == len(closes) == 1 and opens[0] <= closes[0]:
                found.places[part] = (opens[0], closes[0])
            else:
                found.unclear.append(part)
        return True

    def _cut(self, part: Part) -> bool:
        """Whether the text is the same with another beginning or end of the part: it is not there as a whole."""
        mark = private(self.text, 1)
        for edges in ((mark[0], ""), ("", mark[0])):
            self.left -= 1
            try:
                if self.left >= 0 and self.render(between(self.messages, {part: edges})) == self.text:
                    return True
            except Refused:
                continue
        return False

    def _literally(self, part: Part, found: Found) -> Span | None:
        """The place of a part that stands once, as it is, between the parts before and behind it."""
        text = text_at(self.messages[part.message], part)
        order = (part.message, part.start)
        around = [((other.message, other.start), place) for other, place in found.places.items()]
        begin = max((place[1] for other, place in around if other < order), default=0)
        end = min((place[0] for other, place in around if other > order), default=len(self.text))
        if not text or self.text.count(text, begin, end) != 1:
            return None
        at = self.text.index(text, begin, end)
        return at, at + len(text)


_PRIVATE = re.compile("[\U000f0000-\U0010fffd]")


def free(text: str) -> Iterator[str]:
    """Characters for private use that a text does not hold."""
    held = set(_PRIVATE.findall(text))
    return (character for code in chain(*PRIVATE) if (character := chr(code)) not in held)


def private(text: str, number: int) -> list[str]:
    """So many of the characters that a text does not hold; fewer, if it holds nearly all."""
    return list(islice(free(text), number))


def between(messages: Messages, edges: Mapping[Part, tuple[str, str]]) -> Messages:
    """The messages with each part between two texts."""
    changed = list(messages)
    for part, (before, behind) in sorted(edges.items(), key=lambda item: -item[0].start):  # the last first

        def put(text: str, part: Part = part, before: str = before, behind: str = behind) -> str:
            return text[: part.start] + before + text[part.start : part.end] + behind + text[part.end :]

        keys = THOUGHTS if part.path[0] in THOUGHTS else part.path[:1]
        for key in keys:
            if key in changed[part.message]:
                changed[part.message] = _changed(changed[part.message], (key, *part.path[1:]), put)
    return changed


def _changed(value: Any, path: Path, change: Callable[[str], str]) -> Any:
    """A value with another text at a path; the value itself stays as it is."""
    if not path:
        return change(value)
    key: Any = path[0]
    inner = _changed(value[key], path[1:], change)
    if isinstance(value, Mapping):
        return {**value, key: inner}
    return [*value[:key], inner, *value[key + 1 :]]


def text_at(message: Mapping[str, Any], part: Part) -> str:
    """What a message says in a part."""
    value: Any = message
    for key in part.path:
        value = value[key]
    return str(value)[part.start : part.end]
