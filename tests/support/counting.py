"""A listener that counts a run's steps, and the plugin that offers it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge

from fitune import Listener, StepReport, hookimpl


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of the listener of these tests."""

    first: Annotated[int, Ge(0)] = 0
    """Where it begins to count."""


class Offering:
    """A plugin that offers the listener `mine`, made so, and keeps what it has made."""

    def __init__(self, make: Callable[[Options], object]) -> None:
        self.made: list[Any] = []
        self._make = make

    @hookimpl
    def ft_listeners(self) -> Iterator[Listener[Options]]:
        """Offer it."""
        yield Listener(name="mine", summary="For a test", options=Options, make=self._kept)

    def _kept(self, options: Options) -> object:
        self.made.append(self._make(options))
        return self.made[-1]


class Counter:
    """Counts steps, over all starts of a run."""

    def __init__(self, options: Options) -> None:
        self.count = options.first
        self.told: list[str] = []

    @hookimpl
    def ft_run_started(self) -> None:
        """Note what was counted before."""
        self.told.append(f"started at {self.count}")

    @hookimpl
    def ft_step_done(self, step: StepReport) -> None:
        """Count it."""
        self.count += 1

    @hookimpl
    def ft_run_finished(self, error: BaseException | None) -> None:
        """Note it."""
        self.told.append(f"finished at {self.count}")

    def state(self) -> dict[str, Any]:
        """What was counted."""
        return {"count": self.count, "of": ["steps", None, 0.5]}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        assert state["of"] == ["steps", None, 0.5]
        self.count = state["count"]


MINE = 'listener=[{use="mine"}]'
