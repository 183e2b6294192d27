"""The time of an optimizer step, as `ft plan` tells it: forecast, and from what it is made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from fitune.memory.cards.cards import Card
from fitune.memory.cards.pace import PEERS, Pace
from fitune.memory.forecast import Forecast
from fitune.memory.trace.step_time import Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """The time of an optimizer step, forecast."""

    seconds: Seconds
    tokens: int
    """On all cards together."""
    cards: int
    rates: str
    """Where the card's speeds come from."""

    @property
    def tokens_per_second(self) -> float:
        """Padding included."""
        return self.tokens / self.seconds.step

    @property
    def bound(self) -> str:
        """What it waits for, where that is not the card."""
        seconds, on_cards = self.seconds, self.seconds.card + self.seconds.peers
        if seconds.step > on_cards:
            by = "the link to the host" if seconds.link == seconds.step else "Python, which launches operations"
            return f"; bound by {by}"
        return "; bound by the links between cards" if seconds.peers > seconds.card else ""


def time_of(forecast: Forecast) -> StepTime:
    """How long a step of the run takes on its card."""
    pace, accumulation = Pace(forecast.card), forecast.trace.plan.accumulation
    traced, batches = forecast.trace, forecast.shapes.training
    seconds = traced.work.seconds(pace, traced=traced.micro_batches, accumulation=accumulation)
    cards = forecast.card.count
    tokens = traced.plan.replicas * sum(batch.input_ids.numel() for batch in batches) * accumulation // len(batches)
    return StepTime(seconds=seconds, tokens=tokens, cards=cards, rates=pace.origin.says)


def time_lines(forecast: Forecast) -> Iterator[str]:
    """How long a step takes, by forecast, and what that is made from."""
    found = time_of(forecast)
    on_all = f" on all {found.cards}" if found.cards > 1 else ""
    rate = f"{found.tokens_per_second:,.0f} tokens/s{on_all}"
    yield f"  a step     {found.seconds.step:>10.3f} s  forecast, {rate}{found.bound}"
    yield f"  speeds     {found.rates}"
    if found.cards > 1:
        yield f"  links      {found.seconds.peers:>10.3f} s  of that between cards, {links_of(forecast.card)}"


def links_of(card: Card) -> str:
    """How cards talk to each other, and how fast that is taken to be."""
    if card.peer_link:
        return f"{PEERS:.0%} of the {card.peer_link:.0f} GB/s of their data sheet in one direction: assumed"
    return "half the rate of the link to the host, for it goes by way of that: assumed"


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
