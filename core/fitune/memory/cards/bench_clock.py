"""Clocks of `ft bench`: how long the card takes for an operation, and how long the host does."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

Calls = Sequence[Callable[[], Any]]

WORTH = 0.04
"""Seconds of the card that one measurement takes, about."""

MOST = 250
"""Launches of one measurement, at most: a card's queue holds about a thousand kernels."""

REPEATS = 3

PER_LAUNCH = 60e-6
"""Seconds of the host for one launch, at most: so long the card is kept from beginning."""

CYCLES = 2e9
"""Of a card's clock in a second, at most."""

LINK = 2**28
"""Bytes that are copied to measure the link."""


class Clock(Protocol):
    """Tells how long something takes; a test has one of its own."""

    def on_card(self, calls: Calls) -> float:
        """Seconds of the card for one of these calls, which are made in turn."""

    def on_host(self, call: Callable[[], Any]) -> float:
        """Seconds of the host for this call."""


class OnCard:
    """The clock of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def warm_up(self, seconds: float = 2.0) -> None:
        """Work until the card is as warm, and as slow, as in training."""
        import torch

        square = torch.randn(8192, 8192, dtype=torch.bfloat16, device=self._device)
        start = time.perf_counter()
        while time.perf_counter() - start < seconds:
            for _ in range(10):
                torch.mm(square, square)
            torch.cuda.synchronize(self._device)

    def on_card(self, calls: Calls) -> float:
        """Seconds of the card for one of these calls: the median of a few measurements, each of many launches."""
        for call in calls:  # the first may choose a kernel, or compile one
            call()
        once = self._timed(calls, max(3, min(len(calls), 20)))
        number = max(3, min(MOST, round(WORTH / max(once, 1e-7))))
        return statistics.median(self._timed(calls, number) for _ in range(REPEATS))

    def _timed(self, calls: Calls, number: int) -> float:
        import torch

        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self._device)
        torch.cuda._sleep(int(number * PER_LAUNCH * CYCLES))
        first.record()
        for at in range(number):
            calls[at % len(calls)]()
        last.record()
        torch.cuda.synchronize(self._device)
        return float(first.elapsed_time(last)) / 1e3 / number

    def on_host(self, call: Callable[[], Any]) -> float:
        """Seconds of the host for this call, the median of a few."""
        import torch

        found = []
        for _ in range(2 + 5):
            torch.cuda.synchronize(self._device)
            start = time.perf_counter()
            call()
            found.append(time.perf_counter() - start)
        torch.cuda.synchronize(self._device)
        return statistics.median(found[2:])


def link(device: torch.device) -> float:
    """Seconds for a GiB from page-locked memory of the host to the card."""
    import torch

    there = torch.empty(LINK, dtype=torch.uint8, device=device)
    here = torch.empty(LINK, dtype=torch.uint8, pin_memory=True)
    clock = OnCard(device)
    return clock.on_card([lambda: there.copy_(here, non_blocking=True)]) * 2**30 / LINK
