"""Shapes: what a template puts before and behind an answer, learned from a question and an answer that are rendered.

The answer is rendered as the last message, with the prompt for another answer behind it, and with another question
behind it. What the prompt begins with and the text has too is the header of the turn; what stands between that and the
answer is the model's to write. What stands behind the answer and before the prompt is what ends it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fitune_plugins.data.chat_template import Messages, Refused, Template

SENTINEL = "\U0010fffd"

BEFORE, BEHIND = "\n\t ", " \t\n"
"""White space around the answer of a probe, to see whether the template strips it."""

ASKED = {"role": "user", "content": "question"}

CONTEXTS: tuple[Messages, ...] = ([ASKED], [{"role": "system", "content": "system"}, ASKED])
"""What is asked: some templates want a system message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a template puts around an answer."""

    header: str
    """What stands before what the model writes, and begins its turn."""
    lead: str
    """What the model writes before the answer, e.g. a blank or an empty thought."""
    strips: tuple[bool, bool]
    """Whether white space at the answer's beginning and end is taken away."""
    mark: str
    """What the model writes behind the answer, to end its turn; empty where the template writes nothing there."""
    tail: str
    """What stands behind the answer and belongs to its turn: the mark, and what follows it."""

    def kept(self, content: str) -> str:
        """A content as the template writes it."""
        left, right = self.strips
        bare = content.lstrip() if left else content
        return bare.rstrip() if right else bare


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """The shape of turns that one template renders."""

    prompt: str = ""
    """The generation prompt, as the template puts it behind a question."""
    last: Shape | None = None
    """Of an answer that is the last message; None if it could not be learned."""
    inner: Shape | None = None
    """Of an answer that more messages follow."""

    @property
    def headers(self) -> list[str]:
        """What may begin the assistant's turn, what is likeliest first."""
        shapes = [shape.header for shape in (self.last, self.inner) if shape is not None]
        return list(dict.fromkeys(header for header in (self.prompt, *shapes) if header.strip()))

    def marks(self, *, last: bool) -> list[str]:
        """What may end the assistant's turn."""
        shapes = (self.last, self.inner) if last else (self.inner,)
        return list(dict.fromkeys(shape.mark for shape in shapes if shape is not None and shape.mark))


def learn(template: Template) -> Shapes:
    """The shapes of a template; what cannot be learned is left out."""
    for asked in CONTEXTS:
        try:
            return _learn(template, asked)
        except Refused:
            continue
    return Shapes()


def _learn(template: Template, asked: Messages) -> Shapes:
    answer = {"role": "assistant", "content": BEFORE + SENTINEL + BEHIND}
    before, bare = template.render(asked, prompt=True), template.render(asked)
    prompt = before[len(common(template, bare, [before])) :]
    base = before[: len(before) - len(prompt)]
    ended = _Turn(base, template.render([*asked, answer]))
    prompted = _Turn(base, template.render([*asked, answer], prompt=True))
    try:
        gone_on = _Turn(base, template.render([*asked, answer, ASKED]))
    except Refused:
        gone_on = prompted
    inner = prompted if gone_on.tail is None else gone_on
    tail = _inner_tail(template, prompt, ended, prompted, inner, base)
    mark = _mark(template, tail)
    return Shapes(
        prompt=prompt,
        last=_shape(template, prompt, ended, _last_mark(template, ended.tail or "", mark), ended.tail or ""),
        inner=_shape(template, prompt, inner, mark, tail),
    )


class _Turn:
    """The answer's turn in a text that begins with `base`."""

    def __init__(self, base: str, text: str) -> None:
        self.gap: str | None = None
        """Between what is asked and the answer; None if the text is not of the form."""
        self.tail: str | None = None
        """All that stands behind the answer."""
        self.strips = (False, False)
        if text.count(SENTINEL) != 1 or not text.startswith(base):
            return
        gap, tail = text[len(base) :].split(SENTINEL)
        self.strips = (not gap.endswith(BEFORE), not tail.startswith(BEHIND))
        self.gap, self.tail = gap.removesuffix(BEFORE), tail.removeprefix(BEHIND)


def _shape(template: Template, prompt: str, turn: _Turn, mark: str, tail: str) -> Shape | None:
    gap = turn.gap
    if gap is None:
        return None
    own = gap if gap.strip() else ""  # without a prompt, a text before the answer is a header, not the model's to write
    header = common(template, prompt, [gap]) if prompt else own
    return Shape(header=header, lead=gap[len(header) :], strips=turn.strips, mark=mark, tail=tail)


def _inner_tail(template: Template, prompt: str, ended: _Turn, prompted: _Turn, inner: _Turn, base: str) -> str:
    """What stands behind an answer that is not the last message, up to where the next turn begins."""
    tails = [turn.tail for turn in (ended, prompted, inner) if turn.tail is not None]
    if prompt and prompted.tail is not None and prompted.tail.endswith(prompt):
        tail = prompted.tail[: len(prompted.tail) - len(prompt)]
        if inner.tail is None or inner.tail.startswith(tail.rstrip()):
            return tail
    shared = common(template, tails[0], tails[1:]) if tails else ""
    if shared.strip() or prompt or inner.tail is None or ASKED["content"] not in inner.tail:
        return shared
    # The last turn ends in another way, and there is no prompt: the next turn begins as the first one does.
    first, following = base[: base.rfind(ASKED["content"])], inner.tail[: inner.tail.rfind(ASKED["content"])]
    same = 0
    while same < min(len(first), len(following)) and first[-1 - same] == following[-1 - same]:
        same += 1
    starts = [match.start() for match in template.special.finditer(following, len(following) - same)]
    return following[: starts[0]] if starts else shared


def _mark(template: Template, tail: str) -> str:
    """What ends a turn: up to the last special token, or all but white space."""
    ends = [match.end() for match in template.special.finditer(tail)]
    return tail[: ends[-1]] if ends else tail.rstrip()


def _last_mark(template: Template, tail: str, mark: str) -> str:
    """What ends the last turn: as an inner one, with special tokens right behind it, or in its own way."""
    if not mark or not tail.startswith(mark):
        return _mark(template, tail)
    end = len(mark)
    while match := template.special.match(tail, end):
        end = match.end()
    return tail[:end]


def common(template: Template, first: str, others: Iterable[str]) -> str:
    """What texts begin with in common, less a special token or a word that they have in common only in part."""
    shared = first
    for other in others:
        pairs = zip(shared, other, strict=False)
        shared = shared[: next((at for at, (one, two) in enumerate(pairs) if one != two), min(len(shared), len(other)))]
    if len(shared) == len(first):
        return shared
    ends = [match.end() for match in template.special.finditer(first) if match.end() <= len(shared)]
    blank = max((at + 1 for at, character in enumerate(shared) if character.isspace()), default=0)
    return shared[: max([blank, *ends])]
