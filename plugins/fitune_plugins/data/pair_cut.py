"""Cuts a row of two documents with one prompt to a length: both keep the same prompt, and some of their answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from fitune import Example
from fitune_plugins.data.comparisons import REJECTED, prompt_of
from fitune_plugins.data.pack import join

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NO_ROOM = "rows dropped: what is asked leaves no room for both answers"
EQUAL_ONCE_CUT = "rows dropped: chosen and rejected are equal once they are cut"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """What is left of a row, if anything is, and what was done to it."""

    example: Example | None
    done: tuple[str, ...]


def is_compared(example: Example) -> bool:
    """Whether a row holds two documents that are compared."""
    return len(example.lengths) == 2 and "role" in example.extras


def cut(example: Example, length: int, policy: Literal["right", "left"]) -> Cut:
    """The row with at most `length` tokens.

    "right" cuts the answers at their ends, the longer one first. "left" cuts as much from the beginning of both
    prompts, down to one token, and then the answers.
    """
    sides = _sides(example)
    prompt = prompt_of(*sides)
    done = []
    if policy == "left" and prompt > 1:
        less = min(prompt - 1, -(-(len(example.input_ids) - length) // 2))
        sides, prompt = [_part(side, less, len(side.input_ids)) for side in sides], prompt - less
        done.append("rows cut at the left")
    sizes = [len(side.input_ids) for side in sides]
    room = length - 2 * prompt
    if sum(sizes) > length:
        answers = _shares([size - prompt for size in sizes], room)
        sides = [_part(side, 0, prompt + kept) for side, kept in zip(sides, answers, strict=True)]
        done.append("rows cut at the right")
    if not all(side.targets for side in sides):
        return Cut(example=None, done=(NO_ROOM,))
    if REJECTED in example.extras["role"][1:] and _equal(*(side.input_ids for side in sides)):
        return Cut(example=None, done=(EQUAL_ONCE_CUT,))
    return Cut(example=replace(join(sides), extras=example.extras), done=tuple(done))


def _shares(answers: Sequence[int], room: int) -> tuple[int, int]:
    """Tokens that are kept of both answers: as much of each, but for what the shorter one leaves to the other."""
    one, other = answers
    half = max(0, room) // 2
    if one <= half:
        return one, room - one
    if other <= half:
        return room - other, other
    return half, half


def _sides(example: Example) -> list[Example]:
    first = example.lengths[0]
    return [_part(example, 0, first), _part(example, first, len(example.input_ids))]


def _part(example: Example, start: int, end: int) -> Example:
    return Example(input_ids=example.input_ids[start:end], labels=example.labels[start:end], origin=example.origin)


def _equal(one: NDArray[np.int32], other: NDArray[np.int32]) -> bool:
    return len(one) == len(other) and bool((one == other).all())
