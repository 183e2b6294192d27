"""Tells plugins what happens in a run, in the main process alone."""

from __future__ import annotations

from pathlib import Path

from fitune.compose.processes import is_main_process
from fitune.plugin.events import CheckpointReport, EvalReport, Notice, Recovery, RehearsalReport, Run, StepReport
from fitune.plugin.registry import Registry


class Teller:
    """Calls the hooks of one registry."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    def report(self, run: Run, report: StepReport | EvalReport | CheckpointReport | Notice) -> None:
        """Something happened in the loop."""
        if isinstance(report, StepReport):
            self._tell("ft_step_done", run, step=report)
        elif isinstance(report, EvalReport):
            self._tell("ft_evaluated", run, report=report)
        elif isinstance(report, CheckpointReport):
            self._tell("ft_checkpoint_saved", run, report=report)
        else:
            self._tell("ft_noticed", run, notice=report)

    def started(self, run: Run) -> None:
        """The run is ready."""
        self._tell("ft_run_started", run)

    def rehearsed(self, run: Run, report: RehearsalReport) -> None:
        """The longest rows went through all that it does."""
        self._tell("ft_rehearsed", run, report=report)

    def recovered(self, run: Run, recovery: Recovery) -> None:
        """It goes on after it ran out of memory."""
        self._tell("ft_recovered", run, recovery=recovery)

    def saved(self, run: Run, directory: Path) -> None:
        """What was trained is written."""
        self._tell("ft_saved", run, directory=directory)

    def _tell(self, hook: str, run: Run, **arguments: object) -> None:
        if is_main_process():
            self.registry.call(hook, run=run, **arguments)
