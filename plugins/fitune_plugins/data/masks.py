"""Masks: the exact ranges of a rendered conversation that the model has to write.

Of each turn of the assistant, that is what follows the prompt which it is given when it answers: the answer, and the
mark that ends it. The header of the turn is not the model's to write, nor is white space behind the mark.

A template with `{% generation %}` marks says so itself. For the others, the shape of a turn is learned from probes:
what a template puts before and behind an answer. A turn that is not literally of that shape is found by placing a
sentinel in it and rendering again; what remains, when the sentinel is taken out, must be the text as it was. Where
nothing is exact, that is an error, never a guess.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

from fitune_plugins.data.chat_template import Messages, Refused, Template, Tools

Span = tuple[int, int]

SENTINELS = "\U0010fffd\U0010fffc\U0010fffb\U0010fffa"
"""Characters for private use; one that the text does not hold is taken."""

BEFORE, BEHIND = "\n\t ", " \t\n"
"""White space around the answer of a probe, to see whether the template strips it."""


class Inexact(Exception):
    """What the model has to write cannot be told; the message says of which message, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a template puts around an answer."""

    header: str
    """Between the prompt and what the model writes: of templates without a generation prompt."""
    lead: str
    """What the model writes before the answer, e.g. a blank or an empty thought."""
    strips: tuple[bool, bool]
    """Whether white space at the answer's beginning and end is taken away."""
    mark: str
    """What the model writes behind the answer, to end its turn."""
    tail: str
    """All that follows the answer, if it is the last message."""

    def written(self, content: str) -> str:
        """What the model has to write for this content."""
        left, right = self.strips
        bare = content.lstrip() if left else content
        return self.lead + (bare.rstrip() if right else bare) + self.mark


class Masker:
    """Finds what the model has to write in conversations that one template renders."""

    def __init__(self, template: Template) -> None:
        self.template = template
        self.prompt = ""
        """The generation prompt, as the template puts it behind a question."""
        self.last: Shape | None = None
        """Of an answer that is the last message; None if it could not be learned."""
        self.inner: Shape | None = None
        """Of an answer that more messages follow."""
        self.closing = ""
        """What stands behind the last turn only, at the end of the whole."""
        with suppress(Refused):  # it takes no plain question and answer: every turn is found by sentinels
            self._learn()

    # -------------------------------------------------------------------------------------------------- the ranges

    def spans(self, messages: Messages, tools: Tools, wanted: Sequence[int]) -> tuple[str, list[Span]]:
        """The text of a conversation, and what is trained on in it: the answers at these places in `messages`.

        Raises `Refused` or `Inexact`.
        """
        if self.template.marked:
            text, marked = self.template.render_marked(messages, tools)
            spans = [span for span in (self._tidy(text, *mark) for mark in marked) if span[0] < span[1]]
            return text, self._wanted(text, spans, messages, tools, wanted)
        text = self.template.render(messages, tools)
        spans = [self._known(text, messages, tools, at) or self._found(text, messages, tools, at) for at in wanted]
        for at, (one, other) in zip(wanted[1:], pairwise(spans), strict=True):
            if other[0] < one[1]:
                raise _inexact(at)
        return text, [span for span in spans if span[0] < span[1]]

    def _known(self, text: str, messages: Messages, tools: Tools, at: int) -> Span | None:
        """The turn, if it is literally of the shape that was learned."""
        shape, turn = self.last if at == len(messages) - 1 else self.inner, messages[at]
        if shape is None or not at or turn.get("tool_calls"):
            return None
        written = shape.written(turn["content"])
        if shape is self.last:
            rest = shape.tail[len(shape.mark) :]
            if not text.endswith(self.prompt + shape.header + written + rest):
                return None
            end = len(text) - len(rest)
            return end - len(written), end
        before = self.template.render(messages[:at], tools, prompt=True) + shape.header
        if not text.startswith(before) or not text.startswith(written, len(before)):
            return None
        return len(before), len(before) + len(written)

    # ------------------------------------------------------------------------------------------- by placing sentinels

    def _found(self, text: str, messages: Messages, tools: Tools, at: int) -> Span:
        """The turn, by what rendering again shows of it. Raises `Inexact`."""
        content = messages[at]["content"]
        left, right = len(content) - len(content.lstrip()), len(content.rstrip())
        bare = "" if messages[at].get("tool_calls") else content.strip()
        start = self._start(text, messages, tools, at, left if bare else None)
        behind = self._place(text, messages, tools, at, right) if bare else None
        end = None if behind is None else self._marked_end(text, behind, at == len(messages) - 1)
        end = end or self._common_end(text, messages, tools, at) or self._only_mark(text, start, messages, tools, at)
        if end is None or end < (behind or start) or (behind is not None and behind < start):
            raise _inexact(at)
        return start, end

    def _start(self, text: str, messages: Messages, tools: Tools, at: int, placed: int | None) -> int:
        """Where the model begins to write: behind its prompt, or, where that cannot be told, at its answer."""
        before = self.template.render(messages[:at], tools, prompt=True) if at else None
        if before is not None and text.startswith(before) and self.prompt:
            return len(before)
        begin = None if placed is None else self._place(text, messages, tools, at, placed)
        if begin is None:
            raise _inexact(at)
        if before is not None and text.startswith(before) and not text[len(before) : begin].strip():
            return len(before)
        prompted = text.rfind(self.prompt, 0, begin) + len(self.prompt) if self.prompt else 0
        if self.prompt and prompted >= len(self.prompt) and not text[prompted:begin].strip():
            return prompted
        return begin

    def _place(self, text: str, messages: Messages, tools: Tools, at: int, within: int) -> int | None:
        """Where a place within a message's content is in the text; None if it cannot be told."""
        sentinel = next((character for character in SENTINELS if character not in text), None)
        if sentinel is None:
            return None
        content = messages[at]["content"]
        probe = {**messages[at], "content": content[:within] + sentinel + content[within:]}
        try:
            found = self.template.render([*messages[:at], probe, *messages[at + 1 :]], tools)
        except Refused:
            return None
        whole = found.count(sentinel) == 1 and found.replace(sentinel, "") == text
        return found.index(sentinel) if whole else None

    def _marked_end(self, text: str, behind: int, last: bool) -> int | None:
        """Behind the mark that follows an answer which ends at `behind`, with no more than white space between."""
        blank = len(text) - len(text[behind:].lstrip())
        for mark in self._marks(last):
            for at in (behind, blank):
                if text.startswith(mark, at):
                    return at + len(mark)
        return None

    def _common_end(self, text: str, messages: Messages, tools: Tools, at: int) -> int | None:
        """Where a turn ends that the text has in common with itself, ended there and prompted there."""
        ended = self.template.render(messages[: at + 1], tools)
        prompted = self.template.render(messages[: at + 1], tools, prompt=True)
        common = self._common(ended, [prompted, text])
        whole = ended[len(common) :] in ("", self.closing)
        return len(common.rstrip()) if whole else None

    def _only_mark(self, text: str, start: int, messages: Messages, tools: Tools, at: int) -> int | None:
        """Behind the end mark of a turn, if it is the only one before the next message's content."""
        last = at == len(messages) - 1
        following = len(text) if last else self._place(text, messages, tools, at + 1, 0)
        if following is None:
            return None
        ends = {mark: text.count(mark, start, following) for mark in self._marks(last)}
        return next((text.index(mark, start) + len(mark) for mark, number in ends.items() if number == 1), None)

    def _marks(self, last: bool) -> list[str]:
        shapes = (self.last, self.inner) if last else (self.inner,)
        return [shape.mark for shape in shapes if shape is not None and shape.mark]

    # --------------------------------------------------------------------------------------------- generation marks

    def _tidy(self, text: str, start: int, end: int) -> Span:
        """A marked range without the turn's header and white space behind its end, but with the mark that ends it."""
        if self.prompt and text.startswith(self.prompt, start, end):
            start += len(self.prompt)
        bare = start + len(text[start:end].rstrip())
        ends = [match.end() for match in self.template.special.finditer(text, start, end)]
        if bare in ends:
            return start, bare
        mark = next((mark for mark in self._marks(True) if text.startswith(mark, end)), "")
        behind = self.template.special.match(text, end)
        return start, behind.end() if behind else end + len(mark)

    def _wanted(
        self, text: str, spans: list[Span], messages: Messages, tools: Tools, wanted: Sequence[int]
    ) -> list[Span]:
        """The ranges of these answers alone. Raises `Inexact`."""
        answers = [at for at, turn in enumerate(messages) if turn["role"] == "assistant"]
        if not wanted or list(wanted) == answers:
            return spans if wanted else []
        if len(spans) == len(answers):
            return [span for at, span in zip(answers, spans, strict=True) if at in wanted]
        starts = {at: self._prompted(text, messages, tools, at) for at in answers if at >= min(wanted, default=at)}
        ends = dict(zip(starts, [*list(starts.values())[1:], len(text) + 1], strict=True))
        return [span for at in wanted for span in spans if starts[at] <= span[0] < ends[at]]

    def _prompted(self, text: str, messages: Messages, tools: Tools, at: int) -> int:
        """Where what precedes an answer ends, its prompt included. Raises `Inexact`."""
        before = self.template.render(messages[:at], tools, prompt=True) if at else ""
        if not text.startswith(before):
            raise _inexact(at)
        return len(before)

    # ----------------------------------------------------------------------------------------------- the shape of turns

    def _learn(self) -> None:
        """Render a question and an answer, ended, prompted and gone on with. Raises `Refused`."""
        render, sentinel = self.template.render, SENTINELS[0]
        asked = {"role": "user", "content": "question"}
        answer = {"role": "assistant", "content": BEFORE + sentinel + BEHIND}
        before, bare = render([asked], prompt=True), render([asked])
        self.prompt = before[len(self._common(bare, [before])) :]
        ended, prompted = render([asked, answer]), render([asked, answer], prompt=True)
        try:
            gone_on = render([asked, answer, asked])
        except Refused:
            gone_on = prompted
        rendered = (ended, prompted, gone_on)
        if not all(text.startswith(before) and text.count(sentinel) == 1 for text in rendered):
            return
        tails = [text[text.index(sentinel) + 1 :] for text in rendered]
        right = not all(tail.startswith(BEHIND) for tail in tails)
        tails = tails if right else [tail.removeprefix(BEHIND) for tail in tails]
        shared = self._common(tails[0], tails[1:])
        self.closing = tails[0][len(shared) :]
        mark = self._mark(shared)
        end = mark or self._mark(tails[0])
        self.last = self._shape(ended[len(before) : ended.index(sentinel)], right, end, tails[0])
        self.inner = self._shape(gone_on[len(before) : gone_on.index(sentinel)], right, mark, tails[0])

    def _shape(self, gap: str, right: bool, mark: str, tail: str) -> Shape:
        left = not gap.endswith(BEFORE)
        gap = gap if left else gap.removesuffix(BEFORE)
        # Where a template has no generation prompt, a text before the answer is a header, not the model's to write.
        header, lead = (gap, "") if gap.strip() and not self.prompt else ("", gap)
        return Shape(header=header, lead=lead, strips=(left, right), mark=mark, tail=tail)

    def _mark(self, tail: str) -> str:
        """The mark at the beginning of what follows an answer: up to a special token, or all but white space."""
        special = self.template.special.search(tail)
        return tail[: special.end()] if special else tail.rstrip()

    def _common(self, first: str, others: Iterable[str]) -> str:
        """What texts begin with in common, less a special token or a word that they have in common only in part."""
        common = first
        for other in others:
            pairs = zip(common, other, strict=False)
            common = common[: next((at for at, (one, two) in enumerate(pairs) if one != two), len(other))]
        if len(common) == len(first):
            return common
        ends = [match.end() for match in self.template.special.finditer(first) if match.end() <= len(common)]
        blank = max((at + 1 for at, character in enumerate(common) if character.isspace()), default=0)
        return common[: max([blank, *ends])]


def _inexact(at: int) -> Inexact:
    return Inexact(f"message {at + 1} is rendered in a way that does not show exactly which text is its own")
