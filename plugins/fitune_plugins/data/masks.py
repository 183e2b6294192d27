"""Masks: the exact ranges of a rendered conversation that the model has to write.

Of each turn of the assistant, that is what follows the prompt which it is given when it answers: the answer, and all
that ends it. The header of the turn is not the model's to write, nor is white space behind its end.

A template with `{% generation %}` marks says so itself. For the others, the shape of a turn is learned from probes
(`shapes`), and the place of each answer is found in the text (`parts`). A turn is what stands between its header and
its end; where one of them cannot be told exactly, that is an error, never a guess.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from fitune_plugins.data.chat_template import Refused, Template
from fitune_plugins.data.parts import Part, Span, between, private
from fitune_plugins.data.reading import Reading
from fitune_plugins.data.shapes import Shape, learn

NEAR = 6
"""Messages before a turn that are rendered with it alone, to see how it begins."""


Ends: TypeAlias = Literal["mark", "blank", "not"]
"""What a template writes behind an answer: something that ends it, white space alone, or nothing."""


class Inexact(Exception):
    """What the model has to write cannot be told exactly."""

    def __init__(self, message: int) -> None:
        super().__init__(message)
        self.message = message
        """Counted from 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the model has to write in one turn."""

    message: int
    span: Span
    ends: Ends


class Masker:
    """Finds what the model has to write in conversations that one template renders."""

    def __init__(self, template: Template) -> None:
        self.template = template
        self.shapes = learn(template)

    def answers(self, reading: Reading, wanted: Collection[int]) -> list[Answer]:
        """What is to be written in these turns of the assistant, the blank left out. Raises `Refused` or `Inexact`."""
        if self.template.marked:
            return self._marked(reading, wanted)
        found: list[Answer] = []
        leads = self._leads(reading)
        for at in sorted(wanted):
            answer = self._literal(reading, at, leads) or self._sought(reading, at)
            if answer.span[0] < (found[-1].span[1] if found else 0):
                raise Inexact(at)
            found.append(answer)
        return [answer for answer in found if answer.span[0] < answer.span[1]]

    def _marked(self, reading: Reading, wanted: Collection[int]) -> list[Answer]:
        """What the template itself marks of these turns. Raises `Refused` or `Inexact`."""
        _, marked = self.template.render_marked(reading.messages, reading.tools)
        spans = [span for span in (self._tidy(reading.text, *mark) for mark in marked) if span[0] < span[1]]
        turns = [at for at, turn in enumerate(reading.messages) if turn["role"] == "assistant"]
        found: list[Answer] = []
        ends: Ends
        for span, of in zip(spans, self._owners(reading, spans, turns), strict=True):
            kept = [at for at in of if at in wanted]
            if kept and len(kept) < len(of):
                raise Inexact(kept[0])
            if kept or (not of and len(wanted) == len(turns)):
                at = kept[-1] if kept else turns[-1]
                behind = max(reading.bodies.get(at, span)[1], span[0])
                # A range that does not reach to the turn's last part is not where the turn ends.
                ends = "mark" if behind > span[1] else self._how(reading, at, behind, span[1])
                found.append(Answer(message=at, span=span, ends=ends))
        return found

    def _owners(self, reading: Reading, spans: Sequence[Span], turns: Sequence[int]) -> list[list[int]]:
        """The turns that marked ranges belong to."""
        if len(spans) == len(turns):
            return [[at] for at in turns]
        bodies = {at: reading.bodies[at] for at in turns if at in reading.bodies}
        return [[at for at, (begin, _) in bodies.items() if start <= begin < end] for start, end in spans]

    def _tidy(self, text: str, start: int, end: int) -> Span:
        """A marked range without the turn's header and white space behind its end, but with all that ends it."""
        prompt = self.shapes.prompt
        if prompt and text.startswith(prompt, start, end):
            start += len(prompt)
        bare = start + len(text[start:end].rstrip())
        for mark in self.shapes.marks(last=True):
            inside = next((size for size in range(len(mark), 0, -1) if text.endswith(mark[:size], start, bare)), 0)
            for size, at in ((inside, bare), (0, end)):
                if (size or text.startswith(mark, at)) and text.startswith(mark[size:], at):
                    return start, at + len(mark) - size
        if bare in (match.end() for match in self.template.special.finditer(text, start, end)):
            return start, bare
        behind = self.template.special.match(text, end)
        return start, behind.end() if behind else end

    # ------------------------------------------------------------------------------------------ of the learned shape

    def _leads(self, reading: Reading) -> bool:
        """Whether what the shapes have before an answer is the model's to write in inner turns.

        Without a generation prompt, that is told by the first: it is not, where what is asked is written in another
        way once more has been said.
        """
        shape = self.shapes.inner
        if self.shapes.prompt or shape is None or not shape.lead:
            return True
        first = next((at for at, turn in enumerate(reading.messages) if at and turn["role"] == "assistant"), 0)
        return self._prompted(reading, first) is not None

    def _literal(self, reading: Reading, at: int, leads: bool) -> Answer | None:
        """The turn, if it is literally of the shape that was learned."""
        last = at == len(reading.messages) - 1
        shape, turn, text = self.shapes.last if last else self.shapes.inner, reading.messages[at], reading.text
        parts = reading.parts.get(at)
        if shape is None or turn.get("tool_calls") or not parts or parts[0].path != ("content",):
            return None
        content = turn["content"]
        kept = shape.kept(content)
        skipped = len(content) - len(content.lstrip()) if shape.strips[0] else 0
        start = reading.found.places[parts[0]][0] - max(0, parts[0].start - skipped)
        before = shape.header + shape.lead
        end = start + len(kept) + len(shape.mark)
        whole = text.startswith(kept + shape.mark, start) and text.endswith(before, 0, start)
        if not whole or (last and text[start + len(kept) :] != shape.tail):
            return None
        lead = shape.lead if last or leads else ""
        if not self.shapes.prompt and lead and last and not leads and self._prompted(reading, at) is None:
            lead = ""
        return Answer(message=at, span=(start - len(lead), end), ends=_ends(shape))

    # --------------------------------------------------------------------------------------- between header and end

    def _sought(self, reading: Reading, at: int) -> Answer:
        """The turn, by where its parts stand. Raises `Refused` or `Inexact`."""
        if at not in reading.bodies:
            raise Inexact(at)
        begin, behind = reading.bodies[at]
        low, high = (borders[at] for borders in reading.around)
        if begin < low or high < behind:
            raise Inexact(at)
        start = self._start(reading, at, low, begin)
        end, ends = self._end(reading, at, behind, high)
        return Answer(message=at, span=(start, end), ends=ends)

    def _start(self, reading: Reading, at: int, low: int, begin: int) -> int:
        """Where the model begins to write: behind the last header before its first part."""
        text = reading.text
        for header in self.shapes.headers:
            found = text.rfind(header, low, begin)
            if found >= 0:
                return found + len(header)
        lead = self._lead_alone(reading, at)
        if lead is not None and text.endswith(lead, low, begin):
            return begin - len(lead)
        prompted = self._prompted(reading, at)
        if prompted is not None and low <= prompted <= begin:
            return prompted
        if reading.parts[at][0].path == ("content",):
            return begin
        raise Inexact(at)

    def _prompted(self, reading: Reading, at: int) -> int | None:
        """Where the prompt ends that the model is given for this turn, if the text begins with it."""
        if not at:
            return None
        try:
            before = self.template.render(reading.messages[:at], reading.tools, prompt=True)
        except Refused:
            return None
        return len(before) if reading.text.startswith(before) else None

    def _lead_alone(self, reading: Reading, at: int) -> str | None:
        """What the model writes before its first part, where the turn is rendered behind few messages."""
        near = list(reading.messages[max(0, at - NEAR) : at])
        while near and near[0]["role"] not in ("user", "system"):
            near.pop(0)
        mark = private(reading.text, 2)
        turn = between([reading.messages[at]], {_moved(reading.parts[at][0]): (mark[0], "")})[0]
        try:
            before = self.template.render(near, prompt=True)
            whole = self.template.render([*near, turn])
        except Refused:
            return None
        if not near or not whole.startswith(before) or whole.count(mark[0]) != 1:
            return None
        return whole[len(before) : whole.index(mark[0])]

    def _end(self, reading: Reading, at: int, behind: int, high: int) -> tuple[int, Ends]:
        """Behind what ends the turn whose last part ends at `behind`. Raises `Inexact`."""
        text, tail = reading.text, self._tail_alone(reading, at)
        bare = "" if tail is None else tail.rstrip()
        if at == len(reading.messages) - 1:
            end = self._last_end(text, behind)
        elif tail is not None and text.startswith(bare, behind, high):
            end = behind + len(bare)
        else:
            marks = [mark for mark in self.shapes.marks(last=False) if text.count(mark, behind, high) == 1]
            if not marks:
                raise Inexact(at)
            end = text.index(marks[0], behind) + len(marks[0])
        return end, self._how(reading, at, behind, end)

    def _last_end(self, text: str, behind: int) -> int:
        """Where the last turn ends: before what stands at the end of the whole."""
        shape = self.shapes.last
        rest = "" if shape is None else shape.tail[len(shape.mark) :]
        if rest.strip() and text.endswith(rest, behind):
            return len(text) - len(rest)
        return behind + len(text[behind:].rstrip())

    def _how(self, reading: Reading, at: int, behind: int, end: int) -> Ends:
        """Whether what stands before `end` ends a turn."""
        text = reading.text[behind:end]
        called = bool(reading.messages[at].get("tool_calls"))
        marks = self.shapes.marks(last=True)
        special = [match.end() for match in self.template.special.finditer(text)]
        if any(text.endswith(mark) for mark in marks) or (special and special[-1] == len(text)):
            return "mark"
        if text and not called and not marks:
            return "mark"
        return "blank" if reading.text[end : end + 1].isspace() else "not"

    def _tail_alone(self, reading: Reading, at: int) -> str | None:
        """What stands behind the last part of a turn where the model is prompted to go on, up to that prompt."""
        asked = next((turn for turn in reversed(reading.messages[:at]) if turn["role"] == "user"), None)
        mark, part = private(reading.text, 2), reading.parts[at][-1]
        turn = between([reading.messages[at]], {_moved(part): ("", mark[0])})[0]
        try:
            text = self.template.render([turn] if asked is None else [asked, turn], prompt=True)
        except Refused:
            return None
        if text.count(mark[0]) != 1:
            return None
        tail = text[text.index(mark[0]) + 1 :]
        return tail.removesuffix(self.shapes.prompt)


def _moved(part: Part) -> Part:
    """The part in a conversation that begins with its message."""
    return Part(message=0, kind=part.kind, what=part.what, path=part.path, start=part.start, end=part.end)


def _ends(shape: Shape) -> Ends:
    return "mark" if shape.mark else "blank" if shape.tail else "not"
