"""A wish that a run stop: asked by a signal or a plugin, at any moment and from any thread; kept by the loop."""

from __future__ import annotations


class StopRequest:
    """What a run looks at between two steps. Once asked, it finishes the step, saves a checkpoint and ends."""

    __slots__ = ("_reason",)

    def __init__(self) -> None:
        self._reason: str | None = None

    def ask(self, reason: str) -> None:
        """Ask the run to stop; the first reason is told, e.g. "the spot instance is taken back at 12:05"."""
        if self._reason is None:
            self._reason = reason

    @property
    def reason(self) -> str | None:
        """Why the run is to stop; None if it is not."""
        return self._reason
