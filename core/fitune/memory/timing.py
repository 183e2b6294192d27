"""The time of an optimizer step, as `ft plan` tells it: forecast, and from what it is made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from fitune.memory.cards.pace import Pace
from fitune.memory.forecast import Forecast
from fitune.memory.trace.step_time import Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """The time of an optimizer step, forecast."""

    seconds: Seconds
    tokens: int
    rates: str
    """Where the card's speeds come from."""

    @property
    def tokens_per_second(self) -> float:
        """Padding included."""
        return self.tokens / self.seconds.step

    @property
    def bound(self) -> str:
        """What it waits for, where that is not the card."""
        waits = {"link": "the link to the host", "host": "Python, which launches operations"}
        return next((f"; bound by {why}" for name, why in waits.items() if self._is_bound_by(name)), "")

    def _is_bound_by(self, name: str) -> bool:
        return getattr(self.seconds, name) == self.seconds.step > self.seconds.card  # type: ignore[no-any-return]


def time_of(forecast: Forecast) -> StepTime:
    """How long a step of the run takes on its card."""
    pace, accumulation = Pace(forecast.card), forecast.trace.plan.accumulation
    traced, batches = forecast.trace, forecast.shapes.training
    seconds = traced.work.seconds(pace, traced=traced.micro_batches, accumulation=accumulation)
    tokens = sum(batch.input_ids.numel() for batch in batches) * accumulation // len(batches)
    return StepTime(seconds=seconds, tokens=tokens, rates=pace.origin.says)


def time_lines(forecast: Forecast) -> Iterator[str]:
    """How long a step takes, by forecast, and what that is made from."""
    found = time_of(forecast)
    yield f"  a step     {found.seconds.step:>10.3f} s  forecast, {found.tokens_per_second:,.0f} tokens/s{found.bound}"
    yield f"  speeds     {found.rates}"


def json_of_time(forecast: Forecast) -> dict[str, Any]:
    """The same for a program: seconds of a step, and of the card, the host and the link, each by itself."""
    found = time_of(forecast)
    return {
        "seconds": found.seconds.step,
        **asdict(found.seconds),
        "tokens": found.tokens,
        "tokens_per_second": found.tokens_per_second,
        "rates": found.rates,
    }
