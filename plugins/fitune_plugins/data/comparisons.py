"""Tokens of answers that are compared: one row holds two documents with the same prompt.

A pair is the chosen answer's document and the rejected one's. An answer that is judged by itself stands beside its
prompt with another row's answer, from which KTO tells how far the model has moved (arXiv 2402.01306): the answer to the
next question, of the last question the first row's. `extras["role"]` says which is which.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fitune import IGNORED, DataContext, DataError, Example, Preference
from fitune_plugins.data.pack import join
from fitune_plugins.data.sides import EQUAL

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CHOSEN, REJECTED, MISMATCHED = 1.0, -1.0, 2.0
"""Roles of documents: the chosen or desirable answer, the rejected or undesirable one, another row's answer."""

NO_TARGET = "rows left out: an answer has no token to train on"
UNLIKE = "pairs whose sides differ before what is trained on"
SAME_QUESTION = "answers that stand beside another one to the same question: there is no other question"

Tokens = Iterable[tuple[Preference, Sequence[Example]]]
"""Rows with the tokens of each of their sides, the chosen one first."""


def prompt_of(one: Example, other: Example) -> int:
    """Number of tokens that two documents begin with in common, before what is trained on in either."""
    import numpy as np

    size = min(_prompt(one), _prompt(other))
    unlike = np.flatnonzero(one.input_ids[:size] != other.input_ids[:size])
    return int(unlike[0]) if len(unlike) else size


def pairs(rows: Tokens, context: DataContext) -> Iterator[Example]:
    """Rows with a chosen and a rejected answer."""
    for _, sides in _with_targets(rows, context):
        chosen, rejected = sides
        if _equal(chosen.input_ids, rejected.input_ids):
            context.count(EQUAL)
            continue
        if prompt_of(chosen, rejected) < max(map(_prompt, sides)):
            context.count(UNLIKE)
        yield _compared(chosen, rejected, REJECTED)


def judged(rows: Tokens, context: DataContext) -> Iterator[Example]:
    """Each answer by itself, beside its prompt with another answer. Raises `DataError` if all are good, or all bad."""
    first: Example | None = None
    held: list[tuple[Example, float]] = []  # answers to one question, until the next question comes
    numbers = {CHOSEN: 0, REJECTED: 0}
    for answer, role in _answers(rows, context):
        if held and not _equal(_asked(held[0][0]), _asked(answer)):
            yield from (_compared(one, _mismatched(one, answer), MISMATCHED, of=of) for one, of in held)
            held = []
        held.append((answer, role))
        first = first or answer
        numbers[role] += 1
    if not context.held_out and 0 in numbers.values() and any(numbers.values()):
        raise _one_sided(numbers)
    for at, (one, role) in enumerate(held):
        other = first
        if other is None or _equal(_asked(one), _asked(other)):
            context.count(SAME_QUESTION)
            other = held[(at + 1) % len(held)][0]
        yield _compared(one, _mismatched(one, other), MISMATCHED, of=role)


def _one_sided(numbers: dict[float, int]) -> DataError:
    good = bool(numbers[CHOSEN])
    what = f"all {sum(numbers.values())} answers are judged {'good' if good else 'bad'}: there is nothing to compare"
    fix = 'To learn from good ones alone: [objective] use = "sft"' if good else "Add rows whose label is true"
    return DataError(f"{what}. {fix}")


def _answers(rows: Tokens, context: DataContext) -> Iterator[tuple[Example, float]]:
    """Each side by itself, with its role."""
    for preference, sides in _with_targets(rows, context):
        roles = ([CHOSEN] if preference.chosen is not None else []) + [REJECTED]
        yield from zip(sides, roles, strict=False)


def _with_targets(rows: Tokens, context: DataContext) -> Iterator[tuple[Preference, Sequence[Example]]]:
    """The rows each side of which has a token to train on."""
    for preference, sides in rows:
        if all(side.targets for side in sides):
            yield preference, sides
        else:
            context.count(NO_TARGET)


def _compared(one: Example, other: Example, role: float, *, of: float = CHOSEN) -> Example:
    return replace(join([one, other]), extras={"role": (of, role)})


def _mismatched(one: Example, other: Example) -> Example:
    """What is asked in the one, with the answer of the other."""
    import numpy as np

    asked, behind = _asked(one), _prompt(other)
    untrained = np.full_like(asked, IGNORED)
    return Example(
        input_ids=np.concatenate([asked, other.input_ids[behind:]]),
        labels=np.concatenate([untrained, other.labels[behind:]]),
        origin=one.origin,
    )


def _asked(example: Example) -> NDArray[np.int32]:
    return example.input_ids[: _prompt(example)]


def _prompt(example: Example) -> int:
    """Number of tokens before the first that is trained on."""
    return int((example.labels != IGNORED).argmax())


def _equal(one: NDArray[np.int32], other: NDArray[np.int32]) -> bool:
    return len(one) == len(other) and bool((one == other).all())
