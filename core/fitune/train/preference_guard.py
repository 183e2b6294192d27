"""A guard of preference tuning: what rewards and log-probabilities of answers show of a run that learns nothing, or
the wrong thing. It knows the names of what objectives of preferences measure, and no objective.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, variance

WINDOW = 32
"""Steps whose means are compared."""

ANSWERS = 256
"""Fewest pairs, or judged answers, by which chance is told from learning."""

DEVIATIONS = 2.0
"""How many standard deviations from a half an accuracy may be and still be chance."""

SURE = 4.0
"""How many standard errors a fall of log-probabilities is more than."""

FALL = 0.05
"""Share of a log-probability that a fall is more than."""

COLLAPSED = 1 / 3
"""Share of its highest mean below which a margin has collapsed."""

LEAST_MARGIN = 0.1
"""A margin that is worth losing."""

CHOSEN, REJECTED = "log_probs/chosen", "log_probs/rejected"

Numbers = tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceState:
    """What a guard has seen: plain values, for a checkpoint."""

    accuracies: Numbers = ()
    """Of steps, the oldest first."""
    answers: int = 0
    """How many these were of."""
    margins: Numbers = ()
    """Of the last steps."""
    highest: float = 0.0
    """The highest mean margin of so many steps."""
    first: tuple[Numbers, Numbers] = ((), ())
    """Log-probabilities of chosen and of rejected answers, of the first steps."""
    last: tuple[Numbers, Numbers] = ((), ())
    """The same, of the last steps."""
    told: tuple[str, ...] = ()
    """What was told of, once and for all."""


class PreferenceGuard:
    """Tells once of each: answers that are told apart by chance alone, a margin that is lost again, and chosen answers
    that become less likely with the rejected ones.
    """

    def __init__(self, state: Mapping[str, object] | None = None) -> None:
        """`state` is what another one had seen, as `dataclasses.asdict` gives it, or JSON gives that back."""
        self._seen = PreferenceState() if state is None else _read(state)

    def state(self) -> PreferenceState:
        """What it has seen."""
        return self._seen

    def observe(self, metrics: Mapping[str, float], answers: int) -> Iterator[str]:
        """Look at what was measured in a step, of so many pairs or judged answers; a sentence for each finding."""
        if "accuracy" not in metrics:
            return
        seen, margin = self._seen, metrics.get("margin")
        self._seen = PreferenceState(
            accuracies=(*seen.accuracies, metrics["accuracy"])[-WINDOW:] if "chance" not in seen.told else (),
            answers=seen.answers + answers,
            margins=seen.margins if margin is None else (*seen.margins, margin)[-WINDOW:],
            highest=seen.highest,
            first=_with(seen.first, metrics, first=True),
            last=_with(seen.last, metrics, first=False),
            told=seen.told,
        )
        for name, what in (("chance", self._chance(answers)), ("margin", self._margin()), ("falling", self._falling())):
            if what is not None and name not in self._seen.told:
                self._seen = replace(self._seen, told=(*self._seen.told, name))
                yield what

    def _chance(self, answers: int) -> str | None:
        """Of an accuracy that is still that of a coin; of one that was better once, never again."""
        seen = self._seen
        if len(seen.accuracies) < WINDOW or seen.answers < ANSWERS:
            return None
        mean = fmean(seen.accuracies)
        if abs(mean - 0.5) > DEVIATIONS * 0.5 / (WINDOW * answers) ** 0.5:
            self._seen = replace(seen, told=(*seen.told, "chance"))  # it is learning
            return None
        return (
            f"the accuracy is {mean:.2f} over the last {WINDOW} steps, as by chance: the answers are not told apart. "
            "Look at them (ft data): do chosen and rejected differ, and in what is trained on? Else raise [train] "
            "learning_rate, or lower the objective's beta"
        )

    def _margin(self) -> str | None:
        seen = self._seen
        if len(seen.margins) < WINDOW:
            return None
        mean = fmean(seen.margins)
        self._seen = replace(seen, highest=max(seen.highest, mean))
        if seen.highest < LEAST_MARGIN or mean >= COLLAPSED * seen.highest:
            return None
        return (
            f"rewards collapse: their margin is {mean:.3g} over the last {WINDOW} steps, and was {seen.highest:.3g}. "
            "Go on from an earlier checkpoint with a lower [train] learning_rate or max_grad_norm"
        )

    def _falling(self) -> str | None:
        (chosen, rejected), (now, other) = self._seen.first, self._seen.last
        if not (_falls(chosen, now) and _falls(rejected, other)):
            return None
        return (
            f"both log-probabilities fall: of chosen answers from {fmean(chosen):.4g} to {fmean(now):.4g}, of "
            f"rejected ones from {fmean(rejected):.4g} to {fmean(other):.4g}. The margin grows, but the model forgets "
            "what to say (arXiv 2402.13228). Give the objective a term that keeps chosen answers likely (rpo_alpha, "
            "alpha), raise its beta, or lower [train] learning_rate"
        )


def _with(sides: tuple[Numbers, Numbers], metrics: Mapping[str, float], *, first: bool) -> tuple[Numbers, Numbers]:
    found = []
    for side, name in zip(sides, (CHOSEN, REJECTED), strict=True):
        more = (*side, metrics[name]) if name in metrics else side
        found.append(more[:WINDOW] if first else more[-WINDOW:])
    return found[0], found[1]


def _falls(before: Sequence[float], now: Sequence[float]) -> bool:
    """Whether the mean is lower now, beyond what chance explains (Welch's t) and by a share that matters."""
    if len(before) < WINDOW or len(now) < WINDOW:
        return False
    fall = fmean(before) - fmean(now)
    error = float((variance(before) + variance(now)) / WINDOW) ** 0.5
    return bool(fall > max(SURE * error, FALL * abs(fmean(before))))


def _read(values: Mapping[str, object]) -> PreferenceState:
    """A state as JSON gives it back: lists in place of tuples."""

    def numbers(value: object) -> Numbers:
        return tuple(float(one) for one in value) if isinstance(value, list | tuple) else ()

    def sides(value: object) -> tuple[Numbers, Numbers]:
        one, other = value if isinstance(value, list | tuple) and len(value) == 2 else ((), ())
        return numbers(one), numbers(other)

    told, answers, highest = values.get("told"), values.get("answers"), values.get("highest")
    return PreferenceState(
        accuracies=numbers(values.get("accuracies")),
        answers=answers if isinstance(answers, int) else 0,
        margins=numbers(values.get("margins")),
        highest=highest if isinstance(highest, float) else 0.0,
        first=sides(values.get("first")),
        last=sides(values.get("last")),
        told=tuple(str(one) for one in told) if isinstance(told, list | tuple) else (),
    )
