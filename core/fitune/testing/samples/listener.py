"""Listener `sample`: writes the lowest loss so far into a file of the run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fitune import Listener, Run, StepReport, hookimpl


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleOptions:
    """Options of the listener `sample`."""

    file: str = "lowest.txt"
    """Its name, in the run's directory."""


class Sample:
    """Listens to one run."""

    def __init__(self, options: SampleOptions) -> None:
        self._file = options.file
        self._lowest = math.inf

    def state(self) -> dict[str, Any]:
        """Give what a checkpoint keeps."""
        return {"lowest": self._lowest if math.isfinite(self._lowest) else None}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what a checkpoint has kept."""
        lowest = state.get("lowest")
        self._lowest = math.inf if lowest is None else lowest

    @hookimpl
    def ft_step_done(self, run: Run, step: StepReport) -> None:
        """Write it down, where it is a new one."""
        if step.loss < self._lowest:
            self._lowest = step.loss
            (run.directory / self._file).write_text(f"{step.step} {step.loss}\n", encoding="utf-8")


@hookimpl
def ft_listeners() -> Iterable[Listener[SampleOptions]]:
    """Offer the listener."""
    yield Listener(
        name="sample",
        summary="Writes the lowest loss so far into a file",
        options=SampleOptions,
        make=Sample,
    )
