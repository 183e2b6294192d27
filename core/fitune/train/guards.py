"""Guards of a run: what numbers alone show of a loss that leaps, and of parameters that do not train.

They know no tensor: they are given losses, and norms of gradients, and say in a sentence what a person should know.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from fitune.compose.loss_scaling import MOST_SKIPPED, StepCheck
from fitune.compose.parts import Parts
from fitune.compose.weights import unsound_weights
from fitune.errors import RunError
from fitune.plugin.dataflow import Example
from fitune.plugin.events import MemoryForecast, MemoryReport, Notice, StepReport
from fitune.plugin.units import gib
from fitune.train.bad_rows import keep_rows
from fitune.train.preference_guard import PreferenceGuard, PreferenceState

WINDOW = 64
"""Steps before a step that its loss is compared with."""

LEAST = 32
"""Fewest of them that tell what is usual."""

DEVIATIONS = 6.0
"""How many standard deviations, of logarithms, a spike is above the median."""

TIMES = 1.5
"""How many medians a spike is at least."""

RISE = 0.5
"""How far above the median a spike is at least, in nats a token: where a loss is nearly 0, a hard row is many times
the median, and nothing is wrong."""

ABOVE = 1.5
"""How many times the highest of them a spike is at least: rows of two kinds have losses of two sizes."""

QUIET = 64
"""Steps in a row without a spike after which another one is told of."""

NORMAL = 1.4826
"""Standard deviations of a normal distribution in one median absolute deviation of it."""

SURPRISE = 0.01
"""Share by which a card may give more than was forecast before it is told of."""
NAMED = 3
"""Most names in a sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpikeState:
    """What a spike guard has seen: plain values, for a checkpoint."""

    losses: tuple[float, ...] = ()
    """Of the last steps, the oldest first."""
    calm: int = QUIET
    """Steps in a row without a spike."""


class SpikeGuard:
    """Tells of a loss that leaps far above those of the steps before, once for each leap.

    What is usual is the median of the window, and its spread the median absolute deviation, both of logarithms: losses
    of small batches are spread in proportion to their size, and a spike in the window moves neither. Steps after a
    spike are quiet until the loss has come down for `QUIET` of them; a loss that stays up becomes the usual one.

    False alarms, simulated over 100 runs of 1,000 steps each with a falling loss: none under log-normal noise of
    standard deviations of 0.02 to 0.8, or noise of gamma distributions of shapes 1 and 0.5; one in 12 runs where a step
    in ten has three times the loss, as rows of two kinds have one at a time; 2 to 6 a run where the loss is nearly 0
    but for a hard row in ten, or in a hundred. It sees all leaps to twice the loss under noise of 0.02, all to three
    times under 0.1, and of those to five times 94 % under 0.2 and 40 % under 0.3.
    """

    def __init__(self, state: SpikeState | None = None) -> None:
        """`state` is what another one had seen."""
        self.load(state or SpikeState())

    def state(self) -> SpikeState:
        """What it has seen."""
        return SpikeState(losses=tuple(self._losses), calm=self._calm)

    def load(self, state: SpikeState) -> None:
        """Go on from there."""
        self._losses: deque[float] = deque(state.losses, maxlen=WINDOW)
        self._calm = state.calm

    def observe(self, loss: float) -> str | None:
        """Look at a step's loss; a sentence if it is a spike that was not told of. One that is not finite is left out:
        another guard's.
        """
        if not math.isfinite(loss):
            return None
        usual = median(self._losses) if len(self._losses) >= LEAST else math.inf
        highest = max(self._losses, default=math.inf)
        spike = loss > max(TIMES * usual, usual + RISE, ABOVE * highest) and self._is_far(loss)
        seen = len(self._losses)
        self._losses.append(loss)
        told, self._calm = self._calm, 0 if spike else self._calm + 1
        if not spike or told < QUIET:
            return None
        return (
            f"the loss is {loss:.4g}, and {usual:.4g} in the median of the {seen} steps before. If it does not come "
            "down again, go on from an earlier checkpoint with a lower [train] learning_rate or max_grad_norm; if it "
            "does, look at the rows of this step"
        )

    def _is_far(self, loss: float) -> bool:
        """Whether its logarithm is many deviations above the median of those before."""
        logs = [_log(one) for one in self._losses]
        middle = median(logs)
        spread = NORMAL * median(abs(one - middle) for one in logs)
        return _log(loss) - middle > DEVIATIONS * spread


def zero_gradients(norms: Mapping[str, float]) -> str | None:
    """A sentence where the first step shows that nothing trains, or not all that should; None if all is well.

    `norms` are those of the gradient of each parameter that trains, by its name, over all processes and before the
    optimizer has changed any; 0 where there is none.

    What is told of is a part of the model none of whose parameters has a gradient. Within a part, zeros are usual: of
    a LoRA that does nothing yet, A has none, for B is zero (Hu et al., arXiv 2106.09685, section 4.1), and a zero
    that stands alone may be as right in an adapter that is not known here. Experts count as one part: one that no
    token is sent to has no gradient.
    """
    if not norms:
        return None
    if not any(norms.values()):
        return (
            f"nothing trains: the gradient of each of the {len(norms)} parameters that should is zero. Is the loss cut "
            "off from them (a detach, a no_grad), or [train] learning from rows without a target? Look at: ft data"
        )
    of_part = Counter(map(_part, norms))
    zero = Counter(_part(name) for name, norm in norms.items() if norm == 0)
    dead = [part for part, number in zero.items() if number == of_part[part]]
    if not dead:
        return None
    lost = sum(of_part[part] for part in dead)
    return (
        f"{lost} of the {len(norms)} parameters that should train have no gradient: {_some(dead)}. They stay as they "
        "are: is the loss cut off from them, or are they no part of what the rows go through? Then leave them out of "
        "[adapter] targets"
    )


def _unchanged(parts: Parts) -> str:
    """What such a step has done to the weights, as a sentence."""
    changed = parts.step.trainables.changed()
    if not changed:
        return "No weight was changed by it"
    every = len(parts.step.trainables.masters)
    return f"{changed} of {every} tensors were changed before that was known, as their gradients came"


def non_finite_text(step: int, loss: float, norm: float, kept: Path | None) -> str:
    """What is wrong with a step whose loss or gradient is no finite number, and where its rows are; no full stop."""
    rows = f"Its rows are in {kept}" if kept is not None else "Its rows could not be kept"
    return f"step {step}: the loss is {loss:g} and its gradient's norm {norm:g}. {rows}"


def over_forecast(forecast: MemoryForecast | None, memory: MemoryReport) -> str | None:
    """A sentence where a GPU gave more than was forecast, by more than 1 %; None where it did not, or nothing was."""
    if forecast is None or forecast.error is not None or memory.kind != "gpu" or not forecast.allocated:
        return None
    over = memory.peak / forecast.allocated - 1
    if over <= SURPRISE:
        return None
    return (
        f"this run takes {gib(memory.peak)} of the card, and {gib(forecast.allocated)} was forecast: {over:.1%} more. "
        "The forecast does not know something that this model or a plugin does, so that longer rows may not fit "
        "either. Please report it, with the run's recipe.toml"
    )


def _log(loss: float) -> float:
    """The logarithm of a loss; of one that is 0, or below, that of the smallest float32."""
    return math.log(max(loss, 2.0**-126))


def _part(name: str) -> str:
    """The part of the model that a parameter belongs to: for an adapter of peft the layer that it adapts, for experts
    all of a layer's, else the module two levels up, e.g. `layers.3.self_attn` for its `q_proj.weight`.
    """
    names = name.removeprefix("base_model.model.").split(".")
    for place, one in enumerate(names):
        if one == "default" and place > 0:  # peft's name of an adapter, below the kind of its tensors
            return _whole_experts(names[: place - 1]) or name
    return _whole_experts(names[:-2]) or name


def _whole_experts(names: list[str]) -> str:
    place = next((number for number, one in enumerate(names) if one == "experts"), len(names))
    return ".".join(names[: place + 1])


def _some(names: Iterable[str]) -> str:
    """The first names, and how many there are beside them."""
    every = list(names)
    more = f" and {len(every) - NAMED} more" if len(every) > NAMED else ""
    return ", ".join(every[:NAMED]) + more


class Watcher:
    """What has been seen of one run; it holds no part of it. Every process has its own, and they see alike."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        """`state` is what another one had seen."""
        known = state or {}
        self._forecast: MemoryForecast | None = None
        self._skipped = int(known.get("skipped", 0))
        self._spikes = SpikeGuard(SpikeState(**known["spikes"]) if "spikes" in known else None)
        self._preferences = PreferenceGuard(known.get("preferences"))

    def state(self) -> dict[str, Any]:
        """What it has seen, as plain values."""
        seen = {"skipped": self._skipped, "spikes": asdict(self._spikes.state())}
        preferences = self._preferences.state()
        return seen if preferences == PreferenceState() else {**seen, "preferences": asdict(preferences)}

    def observe(self, parts: Parts, report: StepReport, check: StepCheck, rows: Sequence[Example]) -> Iterator[Notice]:
        """Look at a step and its rows; gives what should be known of it. Raises `RunError` where it ends the run."""
        if parts.run.forecast is not self._forecast:  # the first step of a composition
            self._forecast = parts.run.forecast
            if (what := over_forecast(self._forecast, report.memory)) is not None:
                yield Notice(step=report.step, kind="over forecast", what=what)
        if check.finite:
            for kind, what in self._of_finite(parts, report, check, rows):
                yield Notice(step=report.step, kind=kind, what=what)
            return
        kept = _kept(parts, report, rows)
        what = non_finite_text(report.step, report.loss, report.grad_norm, kept)
        fix = "Try a lower [train] learning_rate, or warmup_steps"
        if unsound := unsound_weights(parts.run.model):
            fix = unsound
        elif parts.step.scaling is not None:  # whatever the scale is, the forward pass is the same
            fix = 'In float16 the model itself may overflow: set its dtype to "bfloat16" or "float32"'
        self._skipped += 1
        if parts.run.recipe.train.non_finite == "stop":
            raise RunError(f"{what}. {_unchanged(parts)}. {fix}")
        if self._skipped >= MOST_SKIPPED:
            raise RunError(f"{what}. So were the {self._skipped - 1} steps before, none of which was made. {fix}")
        yield Notice(step=report.step, kind="skipped", what=f"{what}. It was left out")

    def _of_finite(
        self, parts: Parts, report: StepReport, check: StepCheck, rows: Sequence[Example]
    ) -> Iterator[tuple[str, str]]:
        """What there is to say of a step whose loss is a number: in a word or two, and in a sentence."""
        if check.made:
            self._skipped = 0
        if check.norms and (what := zero_gradients(_named(parts, check))) is not None:
            unsound = unsound_weights(parts.run.model)
            yield "no gradient", f"{what.partition(':')[0]}: {unsound}" if unsound else what
        if (what := self._spikes.observe(report.loss)) is not None:
            yield "loss spike", what
        if check.made and report.step > parts.run.recipe.train.warmup(parts.run.steps):
            for what in self._preferences.observe(report.metrics, parts.units(rows)):
                yield "preferences", what


def _named(parts: Parts, check: StepCheck) -> dict[str, float]:
    """The norms of the gradients, by the parameters' names."""
    names = (name for name, parameter in parts.run.model.named_parameters() if parameter.requires_grad)
    return dict(zip(names, check.norms, strict=True))


def _kept(parts: Parts, report: StepReport, rows: Sequence[Example]) -> Path | None:
    if not parts.accelerator.is_main_process:
        return None
    return keep_rows(
        parts.run.directory, report.step, rows, parts.run.tokenizer, report.loss, report.grad_norm
    )  # fmt: skip
