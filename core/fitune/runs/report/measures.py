"""What a run's objective has measured beside its loss, accuracy and rewards say, for drawings and a table.

They stand in a run's metrics under names of the objective's own; "rewards/chosen" and "rewards/rejected" are drawn
together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fitune.runs.history.summary import number
from fitune.runs.lines import Line
from fitune.runs.report.series import Series, series

OWN = frozenset(
    {
        "event", "step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "target_tokens", "tokens_per_second",
        "seconds", "loss_scale", "skipped", "rows", "exact_match", "answers_cut", "exact_match_of_whole",
    }
)  # fmt: skip
"""Names that every objective's runs have (`fitune.runs.metrics`)."""

MOST = 12
"""Drawings of one run: an objective may measure what it likes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """What belongs in one drawing."""

    name: str
    """What stands before the slash, or the whole name."""
    lines: tuple[Series, ...]
    """In training, one for each side."""
    held_out: tuple[tuple[str, tuple[tuple[int, float], ...]], ...]
    """On the held-out data, one for each side: its name, and (step, number)."""

    @property
    def title(self) -> str:
        """In words."""
        words = self.name.replace("_", " ")
        return words[:1].upper() + words[1:]


def measures(steps: Sequence[Line], evaluations: Sequence[Line]) -> tuple[Measure, ...]:
    """All of a run's, in the order in which they were first written."""
    names = dict.fromkeys(name for line in (*steps, *evaluations) for name in _names(line))
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.partition("/")[0], []).append(name)
    return tuple(_measure(group, sides, steps, evaluations) for group, sides in list(groups.items())[:MOST])


def _names(line: Line) -> Iterator[str]:
    for name, value in line.values.items():
        if name not in OWN and not name.endswith("_peak") and number(value) is not None:
            yield name


def _measure(group: str, names: Sequence[str], steps: Sequence[Line], evaluations: Sequence[Line]) -> Measure:
    trained = ((_side(name), _values(steps, name)) for name in names)
    found = ((f"held-out {_side(name)}", tuple(_values(evaluations, name))) for name in names)
    return Measure(
        name=group,
        lines=tuple(series(said, values) for said, values in trained if values),
        held_out=tuple((said, values) for said, values in found if values),
    )


def _side(name: str) -> str:
    return (name.partition("/")[2] or name).replace("_", " ")


def _values(lines: Sequence[Line], name: str) -> list[tuple[int, float]]:
    found = ((line.step, number(line.values.get(name))) for line in lines)
    return [(step, value) for step, value in found if value is not None]
